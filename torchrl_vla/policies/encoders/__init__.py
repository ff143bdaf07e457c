"""Encoders of images and of instructions, which policies take as arguments."""
