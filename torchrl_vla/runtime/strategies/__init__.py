"""Rollout strategies: what is done with a robot's run, and what is kept of it."""
