"""Differences between what a checkpoint, a dataset and an environment declare."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_vla.data import Demonstrations
from torchrl_vla.diagnosis.finding import Finding
from torchrl_vla.diagnosis.image_difference import to_unit, value_range
from torchrl_vla.diagnosis.parity_checks import compare_cameras, images_in
from torchrl_vla.diagnosis.value_relation import unit_of
from torchrl_vla.schema import (
    ACTION_KEY,
    FRAME_KEY,
    STATE_KEY,
    FeatureStatistics,
    RobotDatasetMetadata,
)
from torchrl_vla.schema.compatibility import differences

_STAGE_OF = {
    "cameras": "cameras",
    "action_units": "units",
    "state_units": "units",
    "control_frequency_hz": "control rate",
}
#: Rates within one percent are equal, as in the metadata's own comparison.
_RATE_TOLERANCE = 0.01


def compare_metadata(
    first: RobotDatasetMetadata, second: RobotDatasetMetadata, source: str
) -> Iterator[Finding]:
    """Yield every declared difference; the names of undeclared data mean nothing."""
    if first.action_units is None and first.action_reference is None:
        first = replace(first, embodiment_id=None, action_names=None, state_names=None)
    for line in differences(first, second):
        field = line.partition(":")[0]
        yield Finding(_STAGE_OF.get(field, "action representation"), line, source)


def compare_statistics(
    trained: RobotDatasetMetadata, dataset: Demonstrations, source: str
) -> Iterator[Finding]:
    """Yield what the statistics of a training say of the data's unit or reference.

    Args:
        trained: of the training data.
        dataset: the data at hand.
        source: names both.
    """
    for key, name in ((ACTION_KEY, "action"), (STATE_KEY, "state")):
        ours = vars(trained)[f"{name}_statistics"]
        theirs = vars(dataset.metadata)[f"{name}_statistics"]
        if ours is None or theirs is None or ours.dim != theirs.dim:
            continue
        moving = (ours.std > 1e-9) & (theirs.std > 1e-9)
        factors = (theirs.std / ours.std)[moving].tolist()
        units = {unit_of(factor) for factor in factors}
        unit = units.pop() if len(units) == 1 else None
        if unit is not None:
            message = f"standard deviations of {name}s have a ratio of {factors[0]:.4g}"
            yield Finding("units", f"{message} ({unit})", source)
        elif key == ACTION_KEY and not _alike(ours, theirs.mean, theirs.std):
            yield from _other_reference(ours, dataset, source)


def _alike(stats: FeatureStatistics, mean: Tensor, std: Tensor) -> bool:
    """Return whether a mean and deviation are the statistics' within a twentieth."""
    near = (stats.mean - mean).abs() <= 0.05 * stats.std + 1e-9
    return bool((near & ((stats.std - std).abs() <= 0.05 * stats.std + 1e-9)).all())


def _other_reference(
    stats: FeatureStatistics, dataset: Demonstrations, source: str
) -> Iterator[Finding]:
    """Yield a finding where the data's actions have them by another reference."""
    actions = dataset.frames.get(ACTION_KEY).as_subclass(Tensor).double()
    follows = dataset.frames.get(FRAME_KEY).as_subclass(Tensor).diff() == 1
    theories = {"differences (delta) of consecutive actions": actions.diff(dim=0)}
    theories = {text: value[follows] for text, value in theories.items()}
    state = dataset.frames.get(STATE_KEY, None)
    if state is not None and state.shape[-1] >= actions.shape[-1]:
        origin = state.as_subclass(Tensor).double()[:, : actions.shape[-1]]
        theories["actions minus the state (relative)"] = actions - origin
        theories["actions plus the state (absolute)"] = actions + origin
    for text, values in theories.items():
        if len(values) and _alike(stats, values.mean(0), values.std(0, correction=0)):
            message = f"the training's statistics are those of the data's {text}"
            yield Finding("action representation", message, source)


def check_timestamps(dataset: Demonstrations) -> Iterator[Finding]:
    """Yield a finding where the time between frames is not the declared rate's."""
    rate_hz = dataset.metadata.control_frequency_hz
    time_s = dataset.frames.get("timestamp", None)
    if rate_hz is None or time_s is None:
        return
    frame = dataset.frames.get(FRAME_KEY).as_subclass(Tensor)
    step_s = time_s.as_subclass(Tensor).double().flatten().diff()
    step_s = step_s[frame.diff() == 1]
    if len(step_s) and abs(float(step_s.median()) * rate_hz - 1) > _RATE_TOLERANCE:
        found = 1 / float(step_s.median())
        message = f"timestamps are those of {found:.4g} Hz, declared are {rate_hz:g} Hz"
        yield Finding("control rate", message, "dataset")


def compare_environment(
    dataset: Demonstrations, frames: TensorDictBase, env: EnvBase
) -> Iterator[Finding]:
    """Yield what differs between a dataset and an environment after its reset.

    Args:
        dataset: that the policy was trained on.
        frames: ``[N]`` of its frames, with images.
        env: where the policy will act.
    """
    source = "dataset, environment"
    yield from compare_metadata(dataset.metadata, env.metadata, source)
    yield from _bounds(dataset, env.metadata)
    asked, known = set(env.instructions.texts), set(dataset.instructions.texts)
    # It may ask for more than the data have, if it asks for all that they have.
    if not known <= asked and asked - known:
        message = (
            f"the environment asks for {sorted(asked - known)[:3]}, the data have "
        )
        yield Finding("instruction text", message + str(sorted(known)[:3]), source)
    observation = env.reset()
    observation = observation.reshape(-1) if observation.ndim else observation[None]
    expected, got = images_in(frames), images_in(observation)
    if expected or got:
        yield from compare_cameras(expected, got, source)
    for camera in sorted(set(expected) & set(got)):
        yield from _images(camera, expected[camera], got[camera], source)
    states = [part.get(STATE_KEY, None) for part in (frames, observation)]
    if states[0] is not None and states[1] is not None:
        yield from _states(dataset, states[1], source)


def _bounds(
    dataset: Demonstrations, metadata: RobotDatasetMetadata
) -> Iterator[Finding]:
    if metadata.action_low is None or metadata.action_high is None:
        return
    actions = dataset.frames.get(ACTION_KEY).as_subclass(Tensor).double()
    low, high = torch.tensor(metadata.action_low), torch.tensor(metadata.action_high)
    if low.shape != actions.shape[-1:]:
        return
    margin = 1e-4 * (high - low)
    outside = (actions < low - margin) | (actions > high + margin)
    if not bool(outside.any()):
        return
    row, dim = (int(i) for i in outside.nonzero()[0])
    reach = (actions.abs() / torch.maximum(low.abs(), high.abs())).max().item()
    message = (
        f"{int(outside.any(-1).sum())} of {len(actions)} recorded actions are beyond "
        f"the environment's bounds, first row {row}: dimension {dim} is "
        f"{float(actions[row, dim]):.4g}, not in {float(low[dim]):.4g}.."
        f"{float(high[dim]):.4g}"
    )
    stage = "units" if reach > 10 else "action bounds"
    yield Finding(stage, message, "dataset, environment")


def _images(
    camera: str, expected: Tensor, got: Tensor, source: str
) -> Iterator[Finding]:
    sizes = [list(image.shape[-3:]) for image in (expected, got)]
    if sizes[0] != sizes[1]:
        message = f"{camera!r} is [C, h, w] = {sizes[0]} in the data and {sizes[1]} "
        yield Finding("image size", message + "in the environment", source)
        return
    is_float = got.is_floating_point()
    if is_float and not 0 <= float(got.min()) <= float(got.max()) <= 1:
        message = f"{camera!r} is {value_range(expected)} in the data and "
        yield Finding("image range", message + value_range(got), source)
        return
    if sizes[0][0] != 3:
        return
    colours, found = _colours(expected), _colours(got)
    swapped = _colours(got.flip(-3))
    gap, swapped_gap = ((colours - c).abs().sum().item() / 2 for c in (found, swapped))
    if gap > 0.01 and swapped_gap < 0.5 * gap:
        message = (
            f"{100 * gap:.1f} % of the pixels of {camera!r} have colours that the data "
            f"do not have; with reversed channels {100 * swapped_gap:.1f} %"
        )
        yield Finding("channel order", message, source)


def _colours(image: Tensor) -> Tensor:
    """Return the shares of 16 x 16 x 16 colours in images ``[N, 3, h, w]``."""
    level = (15 * to_unit(image).clamp(0, 1)).round().long().transpose(0, -3).flatten(1)
    index = level[0] * 256 + level[1] * 16 + level[2]
    return index.bincount(minlength=4096).double() / len(index)


def _states(dataset: Demonstrations, state: Tensor, source: str) -> Iterator[Finding]:
    seen = dataset.frames.get(STATE_KEY).as_subclass(Tensor).double()
    if state.shape[-1] != seen.shape[-1]:
        message = f"states have {seen.shape[-1]} numbers in the data and "
        message += f"{state.shape[-1]} in the environment"
        yield Finding("action representation", message, source)
        return
    low, high = seen.amin(0), seen.amax(0)
    reach = 10 * torch.maximum(low.abs(), high.abs()).clamp_min(1e-3)
    far = (state.double().abs() > reach).any(0).nonzero().flatten().tolist()
    if far:
        worst = state[:, far[0]].abs().max().item()
        message = (
            f"the environment's state is {worst:.4g} in dimension {far[0]}, the data's "
            f"are in {float(low[far[0]]):.4g}..{float(high[far[0]]):.4g}"
        )
        yield Finding("units", message, source)
