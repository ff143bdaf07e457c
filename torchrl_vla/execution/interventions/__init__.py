"""Experts that take over from a policy (DAgger)."""
