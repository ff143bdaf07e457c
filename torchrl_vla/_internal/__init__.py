"""Argument checks, optional imports and file writing that every layer shares."""
