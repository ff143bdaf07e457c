"""``torchrl-vla doctor``: parity of a policy's training and acting."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torchrl_vla import recipes
from torchrl_vla._internal.durable_files import write_text
from torchrl_vla._internal.named_objects import import_named
from torchrl_vla.cli import library
from torchrl_vla.cli.options import OptionError, open_environment
from torchrl_vla.errors import VLAError
from torchrl_vla.recipes.environment_options import DEFAULT_ENVIRONMENT

if TYPE_CHECKING:
    from torchrl.envs import EnvBase

#: Errors of the readers.
UNREADABLE = (VLAError, OSError)


@dataclass(frozen=True)
class Doctor:
    """Find where a policy's acting differs from its training.

    The exit status is 0 if it does not, 1 if it does, 2 if something cannot be read.
    """

    policy: str
    """Policy: a folder that `train` or `finetune` wrote; a LeRobot checkpoint (needs
    the extra `lerobot`), a folder or a repo id `owner/name`; or a function of your own
    as module:function."""
    dataset: str
    """Demonstrations that it was trained on: a folder, a repo id `owner/name`, or
    module:function."""
    held_out: str | None = None
    """Demonstrations that training did not see, for the open-loop error. Left out, it
    is that on the training's own."""
    env: str | None = None
    """Environment in which the policy will act, to be compared with the dataset."""
    tasks: tuple[str, ...] = ()
    """Tasks of the environment; empty takes its default."""
    image_size: int | None = None
    """Side of the environment's images in pixels."""
    observe: str | None = None
    """What your robot's code does to an observation before the policy reads it: a
    function of your own as module:function, from TensorDict to TensorDict."""
    json: Path | None = None
    """File that receives all of it as JSON."""

    def run(self) -> int:
        """Diagnose, print, write the file; return the exit status."""
        try:
            diagnosis = self._diagnose()
        except UNREADABLE as error:
            print(f"torchrl-vla doctor: {error}", file=sys.stderr)
            return 2
        print(diagnosis)
        if self.json is not None:
            write_text(self.json, diagnosis.to_json())
        return diagnosis.exit_code

    def _diagnose(self) -> library.Diagnosis:
        observe = None
        if self.observe is not None:
            observe = import_named("--observe", self.observe)
        held_out = None
        if self.held_out is not None:
            held_out = recipes.open_dataset(self.held_out)
        env = self._environment()
        try:
            return library.diagnose(
                self.policy,
                recipes.open_dataset(self.dataset),
                env,
                held_out=held_out,
                observe=observe,
            )
        finally:
            if env is not None:
                env.close()

    def _environment(self) -> EnvBase | None:
        if self.env is None:
            if self.tasks or self.image_size is not None:
                raise OptionError(
                    "doctor: expected --env beside --tasks and --image-size, which "
                    "are options of an environment, got none."
                )
            return None
        options = replace(
            DEFAULT_ENVIRONMENT,
            name=self.env,
            tasks=self.tasks,
            image_size=self.image_size,
            num_envs=8,
        )
        return open_environment(options, seed=0)
