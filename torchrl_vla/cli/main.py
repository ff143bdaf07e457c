"""The ``torchrl-vla`` command.

Its subcommands are ``demo``, ``collect``, ``train``, ``finetune``, ``evaluate`` and
``compare``.
Each subcommand is a frozen dataclass whose fields are its options and whose ``run`` is
a thin reading of the library; ``--help`` is the documentation.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from torchrl_vla.cli.collect import Collect
from torchrl_vla.cli.compare import Compare
from torchrl_vla.cli.demo import Demo
from torchrl_vla.cli.evaluate import Evaluate
from torchrl_vla.cli.finetune import Finetune
from torchrl_vla.cli.train import Train
from torchrl_vla.schema import VLAError

Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Collect, tyro.conf.subcommand("collect")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Finetune, tyro.conf.subcommand("finetune")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; our own errors become one message, not a traceback."""
    command = tyro.cli(Command, prog="torchrl-vla", args=arguments)
    try:
        command.run()
    except (VLAError, FileNotFoundError, FileExistsError) as error:
        print(f"torchrl-vla: {error}", file=sys.stderr)
        return 1
    return 0
