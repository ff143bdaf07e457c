"""The command as a module: ``torchrun -m torchrl_vla``, ``python -m torchrl_vla``."""

import sys

from torchrl_vla.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
