"""``torchrl-vla collect``: demonstrations from a scripted expert."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torchrl_vla.data import collect, write_lerobot
from torchrl_vla.data.demonstrations import check_folder_is_free
from torchrl_vla.data.lerobot_writer.lerobot_writer import check_writer_extras
from torchrl_vla.recipes import ENVIRONMENTS, ExpertEnvironmentName, make_environment


@dataclass(frozen=True)
class Collect:
    """Roll a scripted expert out and write its successful episodes to a folder."""

    folder: Path
    """Where the dataset is written; must not hold one yet."""
    env: ExpertEnvironmentName = "tabletop"
    """Which environment."""
    tasks: tuple[str, ...] = ()
    """Its tasks; empty takes the environment's default."""
    episodes: int = 600
    """How many episodes to keep, as many of each instruction."""
    noise: float | None = None
    """Noise on the expert's executed action (its intended action is what is stored as
    the target); left out, the environment's default."""
    image_size: int | None = None
    """Side of the images in pixels. Left out, MetaWorld has state alone."""
    num_envs: int = 32
    """How many environments run side by side."""
    num_workers: int = 0
    """Processes that share the simulators (MetaWorld)."""
    seed: int = 0
    """Seed of the initial states and the noise."""
    format: Literal["memmap", "lerobot"] = "memmap"
    """The folder's format: ours, or LeRobot v3.0, which takes the extra `datasets`."""
    images: Literal["video", "png"] = "video"
    """How a LeRobot dataset holds them. Video wants 32 pixels and more."""

    def run(self) -> None:
        """Collect, and print what was collected."""
        env = make_environment(
            self.env,
            tasks=self.tasks,
            num_envs=self.num_envs,
            image_size=self.image_size,
            num_workers=self.num_workers,
            seed=self.seed,
        )
        noise = ENVIRONMENTS[self.env].noise if self.noise is None else self.noise
        expert = env.make_expert(noise=noise, seed=self.seed)

        options = {"seed": self.seed, "balanced": True}
        if self.format == "memmap":
            print(collect(env, expert, self.episodes, folder=self.folder, **options))
        else:  # what can be refused is, before all the episodes
            check_folder_is_free(self.folder, "collect")
            check_writer_extras(self.images)
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder.parent) as folder:
                recorded = collect(
                    env, expert, self.episodes, folder=Path(folder) / "ours", **options
                )
                write_lerobot(recorded, self.folder, images=self.images)
                print(recorded)
        env.close()
