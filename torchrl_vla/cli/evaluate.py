"""``torchrl-vla evaluate``: how good is a policy, and how sure are we."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torchrl_vla.cli.options import open_environment, read_json
from torchrl_vla.evaluation import Recorder, evaluate, write_video
from torchrl_vla.recipes import load_actor, prepare_environment


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a trained policy on episodes with recorded seeds."""

    policy: str
    """Folder that `train` wrote; or a LeRobot checkpoint (needs the extra `lerobot`),
    a folder or a repo id `owner/name`."""
    env: str = "tabletop"
    """Which environment: tabletop, metaworld, pusht or aloha, or one of its tasks, e.g.
    metaworld/reach, aloha/transfer_cube or tabletop/reach-red. One with other
    conventions than the training data raises."""
    tasks: tuple[str, ...] = ()
    """Its tasks, where there are several; empty takes the environment's default."""
    episodes: int = 200
    """How many episodes, exactly."""
    replan_interval: int | None = None
    """Actions to execute before the policy is asked again; left out, the chunk, or as
    many as LeRobot executes of it."""
    rename_map: str = "{}"
    """Of a LeRobot checkpoint: the environment's cameras to the policy's, as JSON, e.g.
    '{"corner2": "top"}'; null hides one from the policy."""
    empty_cameras: tuple[str, ...] = ()
    """Of a LeRobot checkpoint: its cameras that the environment does not have."""
    device: str | None = None
    """Where a LeRobot policy runs; left out, where it was trained, or the CPU."""
    image_size: int | None = None
    """Side of the images in pixels. Left out, MetaWorld has state alone."""
    num_envs: int = 32
    """How many environments run side by side; the result of a policy that draws no
    noise does not depend on it."""
    num_workers: int = 0
    """Processes that share the simulators (not the tabletop's)."""
    seed: int = 1
    """Seed of the episodes; use another than the demonstrations'."""
    json: Path | None = None
    """Where to write every episode's record."""
    video: Path | None = None
    """Where to write a video (.mp4) of the first four episodes; needs the extra
    `video`, and in MetaWorld --image-size."""

    def run(self) -> None:
        """Evaluate, print the table, and write what was asked for."""
        env = open_environment(
            self.env,
            tasks=self.tasks,
            num_envs=min(self.num_envs, self.episodes),
            image_size=self.image_size,
            num_workers=self.num_workers,
            seed=self.seed,
        )
        actor = load_actor(
            self.policy,
            metadata=env.metadata,
            instructions=env.instructions,
            replan_interval=self.replan_interval,
            **self._lerobot_options(),
        )
        env = prepare_environment(env, actor)
        recorder = None if self.video is None else Recorder(min(4, self.episodes))
        torch.manual_seed(self.seed)  # policies that sample noise
        result = evaluate(env, actor, self.episodes, seed=self.seed, recorder=recorder)
        env.close()
        print(result)
        if self.json is not None:
            self.json.write_text(result.to_json())
        if recorder is not None:
            rate_hz = env.metadata.control_frequency_hz
            write_video(self.video, torch.cat(recorder.films), rate_hz=rate_hz)

    def _lerobot_options(self) -> dict[str, Any]:
        options = {
            "rename_map": read_json("--rename-map", self.rename_map),
            "empty_cameras": self.empty_cameras,
            "device": self.device,
        }
        return {name: value for name, value in options.items() if value}
