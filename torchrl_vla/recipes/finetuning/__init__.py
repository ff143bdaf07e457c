"""Reinforcement learning: one whole job, and the parts it is made of."""
