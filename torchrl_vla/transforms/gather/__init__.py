"""Gathering chunks and histories from the frames of a replay buffer's storage."""
