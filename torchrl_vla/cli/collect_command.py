"""``torchrl-vla collect``: demonstrations from a scripted expert."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import OmitArgPrefixes

from torchrl_vla._internal.option_names import Labels
from torchrl_vla.cli import library
from torchrl_vla.cli.options import OptionError, open_environment
from torchrl_vla.envs.known_environments import ENVIRONMENTS
from torchrl_vla.recipes.environment_options import (
    DEFAULT_ENVIRONMENT,
    EnvironmentOptions,
)

if TYPE_CHECKING:
    from tensordict.nn import TensorDictModuleBase
    from torchrl.envs import EnvBase


@dataclass(frozen=True)
class Collect:
    """Roll out a scripted expert and write its successful episodes to a folder.

    The environment needs an expert: tabletop, metaworld and libero have one; so may an
    environment of your own, as a method make_expert(seed=...).
    """

    folder: Path
    """Folder that receives the dataset. It must not hold one yet."""
    env: OmitArgPrefixes[EnvironmentOptions] = DEFAULT_ENVIRONMENT
    episodes: int = 600
    """Number of episodes to keep, as many of each instruction."""
    noise: float | None = None
    """Noise on the expert's executed action. Its intended action is stored as the
    target. Left out, the environment's default."""
    seed: int = 0
    """Seed of the initial states and the noise."""
    labels: Labels = "clamp"
    """Labels beyond the bounds of the environment's actions: clamp them, which is what
    an environment that clips executes, or refuse them."""
    image_interval: int = 1
    """Render every such frame of an episode only, which takes less time by as much; the
    frames between are targets, and training does not sample them. Not for LeRobot."""
    convert_to: str | None = None
    """Folder of a dataset or checkpoint in whose conventions the demonstrations are
    written, such as its units, order of dimensions or rotations; what is converted is
    printed. A difference without a conversion is refused before the first episode."""
    format: Literal["memmap", "lerobot"] = "memmap"
    """Format of the folder: ours, or LeRobot v3.0, which needs the extra `datasets`."""
    images: Literal["video", "png"] | None = None
    """How a LeRobot dataset stores images; left out, as video, which needs 32 pixels
    and more."""

    def run(self) -> None:
        """Collect, and print the dataset."""
        if self.format == "memmap" and self.images is not None:
            raise OptionError(
                "collect: expected --images beside --format lerobot alone, got "
                f"{self.images!r} with --format memmap, which stores plain pixels."
            )
        is_sparse = self.image_interval != 1
        if is_sparse and self.format == "lerobot":
            raise OptionError(
                "collect: expected --image-interval 1 with --format lerobot, whose "
                f"frames have an image each, got {self.image_interval}."
            )
        env = open_environment(
            self.env,
            self.seed,
            render_on_demand=is_sparse or self.env.render_on_demand,
        )
        expert = self._make_expert(env)
        target = None
        if self.convert_to is not None:
            target = library.metadata_in(self.convert_to)
            library.frame_conversion("collect", env.metadata, target)
        if self.format == "memmap" and target is None:
            print(self._collect(env, expert, self.folder))
        else:  # refuse what can be refused before all the episodes
            library.check_folder_is_free(self.folder, "collect")
            if self.format == "lerobot":
                library.check_writer_extras(self.images or "video")
            # Beside the folder, where it stays if the conversion fails.
            ours = self.folder.with_name(f"{self.folder.name}.recording")
            recorded = self._collect(env, expert, ours)
            print(self._write(recorded, target))
            del recorded  # its frames are files of the folder
            shutil.rmtree(ours)
        env.close()

    def _write(
        self,
        recorded: library.DemonstrationDataset,
        target: library.RobotDatasetMetadata | None,
    ) -> library.DemonstrationDataset:
        written = recorded
        if target is not None:
            conversion = library.frame_conversion("collect", recorded.metadata, target)
            changes = conversion.changes or ["nothing: both are alike"]
            written = library.convert_demonstrations(recorded, target)
            print("converted:\n  - " + "\n  - ".join(changes))
        if self.format == "lerobot":
            library.write_lerobot(written, self.folder, images=self.images or "video")
        else:
            written.to_folder(self.folder)
        return written

    def _collect(
        self, env: EnvBase, expert: TensorDictModuleBase, folder: Path
    ) -> library.DemonstrationDataset:
        return library.collect(
            env,
            expert,
            self.episodes,
            folder=folder,
            seed=self.seed,
            balanced=True,
            labels=self.labels,
            image_interval=self.image_interval,
        )

    def _make_expert(self, env: EnvBase) -> TensorDictModuleBase:
        noise = self.noise
        if noise is None and self.env.name.partition("/")[0] in ENVIRONMENTS:
            noise = ENVIRONMENTS[self.env.name.partition("/")[0]].noise
        return library.make_expert("collect", env, noise=noise, seed=self.seed)
