"""The ``torchrl-vla`` command.

Its subcommands are ``demo``, ``collect``, ``train``, ``finetune``, ``evaluate``,
``compare``, ``inspect``, ``doctor``, ``profile``, ``compare-profiles``, ``plan``,
``run``, ``record``, ``replay``, ``teleoperate``, ``serve`` and ``smoke``.
Each is a frozen dataclass whose fields are its options; its ``run`` calls the library.
``--help`` is the documentation.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Annotated, Any

import tyro

from torchrl_vla._internal.named_objects import make_current_directory_importable
from torchrl_vla.cli.collect_command import Collect
from torchrl_vla.cli.compare_command import Compare
from torchrl_vla.cli.compare_profiles_command import CompareProfiles
from torchrl_vla.cli.demo_command import Demo
from torchrl_vla.cli.doctor_command import Doctor
from torchrl_vla.cli.evaluate_command import Evaluate
from torchrl_vla.cli.finetune_command import finetune_command
from torchrl_vla.cli.inspect_command import Inspect
from torchrl_vla.cli.options import check_launch
from torchrl_vla.cli.plan_command import Plan
from torchrl_vla.cli.profile_command import Profile
from torchrl_vla.cli.record_command import Record
from torchrl_vla.cli.replay_command import Replay
from torchrl_vla.cli.run_command import Run
from torchrl_vla.cli.serve_command import Serve
from torchrl_vla.cli.smoke_command import Smoke
from torchrl_vla.cli.teleoperate_command import Teleoperate
from torchrl_vla.cli.train_command import Train
from torchrl_vla.errors import VLAError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; an error that the library raises becomes one message.

    Returns:
        The exit status: 0, 1 after an error, or 130 after Ctrl-C; ``compare --gate``,
        ``inspect``, ``doctor``, ``profile`` and ``compare-profiles`` have theirs.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    # A user's own class is imported by name, also when its checkpoint is read.
    make_current_directory_importable()
    try:
        command = _parse(arguments)
        check_launch(type(command).__name__.lower())
        return command.run() or 0
    except KeyboardInterrupt as interrupt:
        print(f"torchrl-vla: {str(interrupt) or 'interrupted.'}", file=sys.stderr)
        return 130  # 128 + SIGINT, as shells have it
    except (
        VLAError,
        ValueError,
        TypeError,
        RuntimeError,
        OSError,
        ImportError,
    ) as error:
        if not _is_ours(error):
            raise
        print(f"torchrl-vla: {error}", file=sys.stderr)
        return 1


def _parse(arguments: list[str]) -> Any:
    """Return the command with its options."""
    commands: dict[str, Any] = {
        "demo": Demo,
        "collect": Collect,
        "train": Train,
        "finetune": finetune_command(arguments),
        "evaluate": Evaluate,
        "compare": Compare,
        "inspect": Inspect,
        "doctor": Doctor,
        "profile": Profile,
        "compare-profiles": CompareProfiles,
        "plan": Plan,
        "run": Run,
        "record": Record,
        "replay": Replay,
        "teleoperate": Teleoperate,
        "serve": Serve,
        "smoke": Smoke,
    }
    kinds: list[Any] = [
        Annotated[command, tyro.conf.subcommand(name)]
        for name, command in commands.items()
    ]
    command: Any = reduce(or_, kinds)
    return tyro.cli(command, prog="torchrl-vla", args=arguments)


def _is_ours(error: Exception) -> bool:
    """Return whether the library raised an error, and no package below it."""
    match error:
        case VLAError() | FileNotFoundError() | FileExistsError():
            return True
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith("torchrl_vla.")
