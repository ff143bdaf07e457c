"""Loading LeRobot policies: registry, checkpoints, weights, health checks."""
