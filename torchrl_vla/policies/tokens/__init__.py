"""Heads that emit action tokens."""
