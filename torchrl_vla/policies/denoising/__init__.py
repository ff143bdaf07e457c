"""Heads that denoise: flows and diffusion."""
