"""Losses of off-policy learning over decisions."""
