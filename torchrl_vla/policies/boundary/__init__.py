"""What leaves for the robot, checked."""
