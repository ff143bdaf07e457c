"""Steps for a writer of LeRobot datasets, in the canonical schema."""

from __future__ import annotations

from pathlib import Path

import torch
from tensordict import TensorDict

from torchrl_vla.schema import InstructionTable, RobotDatasetMetadata

FPS = 10
TASKS = ("push the block", "open the drawer")
TABLE = InstructionTable(TASKS)
METADATA = RobotDatasetMetadata(
    "steps",
    embodiment_id="arm",
    action_names=("dx", "dy"),
    state_names=("x", "y", "z"),
    control_frequency_hz=FPS,
    cameras=("front", "wrist"),
)


def make_episode(
    length: int,
    *,
    number: int = 0,
    cameras=("front", "wrist"),
    size=(32, 48),
    seed: int = 0,
) -> TensorDict:
    """Steps ``[T]`` of random numbers and smooth images, ended by ``next.done``."""
    generator = torch.Generator().manual_seed(1000 * seed + number)

    def normal(*shape):
        return torch.randn(length, *shape, generator=generator)

    rows = torch.linspace(0, 1, size[0])[:, None]
    columns = torch.linspace(0, 1, size[1])
    steps = TensorDict(
        {
            "observation": {"state": normal(3)},
            "action": normal(2),
            "language_instruction": torch.full((length,), TABLE.id(TASKS[number % 2])),
            "next": {
                "reward": normal(1),
                "done": torch.arange(length)[:, None] == length - 1,
            },
        },
        [length],
    )
    for camera in cameras:
        phase = torch.rand(length, 3, 1, 1, generator=generator)
        wave = (2 * (phase + rows + columns).frac() - 1).abs()
        steps["observation", "image", camera] = (255 * wave).to(torch.uint8)
    return steps


def make_frames(lengths=(5, 3, 7), **options) -> TensorDict:
    """Frames ``[F]`` of several episodes, numbered."""
    parts = []
    for number, length in enumerate(lengths):
        steps = make_episode(length, number=number, **options)
        steps["episode_index"] = torch.full((length,), number)
        steps["frame_index"] = torch.arange(length)
        parts.append(steps)
    return torch.cat(parts)


def files_below(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    )
