"""Executors that plan while the robot moves."""
