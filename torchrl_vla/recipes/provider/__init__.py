"""Policies behind a boundary: checked requests, translated actions, provenance."""
