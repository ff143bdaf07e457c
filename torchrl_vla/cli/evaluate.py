"""``torchrl-vla evaluate``: how good is a policy, and how sure are we."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from torchrl_vla.evaluation import Recorder, evaluate, write_video
from torchrl_vla.recipes import EnvironmentName, load_actor, make_environment


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a trained policy on episodes with recorded seeds."""

    policy: Path
    """Folder that ``train`` wrote."""
    env: EnvironmentName = "tabletop"
    """Which environment; one with other conventions than the training data raises."""
    tasks: tuple[str, ...] = ()
    """Its tasks; empty takes the environment's default."""
    episodes: int = 200
    """How many episodes, exactly."""
    replan_interval: int | None = None
    """Actions to execute before the policy is asked again; None executes the chunk."""
    image_size: int | None = None
    """Side of the images in pixels. Left out, MetaWorld has state alone."""
    num_envs: int = 32
    """How many environments run side by side; the result does not depend on it."""
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
        env = make_environment(
            self.env,
            tasks=self.tasks,
            num_envs=min(self.num_envs, self.episodes),
            image_size=self.image_size,
            num_workers=self.num_workers,
            seed=self.seed,
        )
        actor = load_actor(
            self.policy, metadata=env.metadata, replan_interval=self.replan_interval
        )
        recorder = None if self.video is None else Recorder(min(4, self.episodes))
        result = evaluate(env, actor, self.episodes, seed=self.seed, recorder=recorder)
        env.close()
        print(result)
        if self.json is not None:
            self.json.write_text(result.to_json())
        if recorder is not None:
            rate_hz = env.metadata.control_frequency_hz
            write_video(self.video, torch.cat(recorder.films), rate_hz=rate_hz)
