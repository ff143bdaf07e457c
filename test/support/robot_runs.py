"""Runs of a fake robot on a fake clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from torchrl_vla.data import LeRobotWriter
from torchrl_vla.runtime import (
    EXTRA_KEYS,
    BackgroundRecorder,
    ControlLoop,
    GateOptions,
    RobotEnv,
    RobotRun,
    SafetyGate,
    ScriptedKeys,
)
from torchrl_vla.testing import (
    FakeClock,
    FakeEpisodeWriter,
    FakeRobot,
    FakeRobotOptions,
    SlowPolicy,
)


def steady(call: int) -> Tensor:
    return torch.full((2,), (call % 100) / 100)


def make_run(
    *,
    rate_hz: float = 10.0,
    duration_s: float | None = None,
    script: Callable[[int], Tensor] = steady,
    keys: dict | None = None,
    image_size: int | None = None,
    clock: object | None = None,
    gate: GateOptions | None = None,
    **options,
) -> tuple[RobotRun, FakeRobot]:
    clock = FakeClock() if clock is None else clock
    robot_options = FakeRobotOptions(rate_hz=rate_hz, image_size=image_size)
    robot = FakeRobot(robot_options, clock=clock)
    loop = ControlLoop(rate_hz, duration_s=duration_s, clock=clock)
    env = RobotEnv(
        SafetyGate(robot, gate, clock=clock), task="wave", loop=loop, **options
    )
    return RobotRun(env, SlowPolicy(script), ScriptedKeys(keys or {})), robot


class MemoryWriter(FakeEpisodeWriter):
    def actions(self) -> list[list[float]]:
        """Return the first number of each action."""
        return [
            [round(frame["action"].flatten()[0].item(), 4) for frame in episode]
            for episode in self.episodes
        ]


def lerobot_recorder(
    folder: Path, run: RobotRun, extra_keys: Sequence = (), **options
) -> BackgroundRecorder:
    env = run.robot_env
    writer = LeRobotWriter(
        folder,
        metadata=replace(env.metadata, control_frequency_hz=env.loop.rate_hz),
        instructions=env.instructions,
        images="png",
        extra_keys=[key for key in EXTRA_KEYS if key in extra_keys],
    )
    return BackgroundRecorder(writer, **options)
