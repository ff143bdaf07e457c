"""Checks of actions before they reach a robot."""
