"""Running LeRobot policies: inputs, invocation, outputs, flow likelihoods."""
