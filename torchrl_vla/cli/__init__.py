"""The command line; ``torchrl_vla.cli.main`` is its entry point."""
