"""Recording of a run beside its control loop."""
