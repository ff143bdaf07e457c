"""Heads that draw a chunk around a mean."""
