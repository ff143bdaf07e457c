"""Robot metadata of a LeRobot dataset."""

from __future__ import annotations

from collections.abc import Iterable

from tensordict import TensorDict
from torch import Tensor

from torchrl_vla.data.lerobot.layout import OWNER, Feature, LeRobotLayout
from torchrl_vla.data.lerobot.statistics import Stored, feature_statistics
from torchrl_vla.schema import (
    ACTION_KEY,
    IMAGE_KEY,
    STATE_KEY,
    RobotDatasetMetadata,
    SchemaError,
    to_canonical,
    to_lerobot,
)


def read_metadata(
    layout: LeRobotLayout,
    frames: TensorDict,
    stored: Stored,
    *,
    statistics: str,
    cameras: Iterable[str],
    dataset_id: str,
) -> RobotDatasetMetadata:
    """Fill in what LeRobot declares: names, rate, robot, cameras and statistics."""
    keys = [to_canonical(name) for name in cameras]
    values = {}
    for prefix, key in (("action", ACTION_KEY), ("state", STATE_KEY)):
        feature = layout.features.get(to_lerobot(key))
        if feature is None:
            continue
        if len(feature.shape) != 1:
            raise SchemaError(
                f"{OWNER}: expected one dimension at feature {to_lerobot(key)!r}, got "
                f"shape {feature.shape}."
            )
        samples = frames.get(key).as_subclass(Tensor)
        values[f"{prefix}_dim"] = feature.shape[0]
        values[f"{prefix}_names"] = _usable_names(feature)
        values[f"{prefix}_statistics"] = feature_statistics(
            stored, to_lerobot(key), samples, statistics
        )
    return RobotDatasetMetadata(
        dataset_id,
        embodiment_id=layout.robot_type,
        control_frequency_hz=layout.rate_hz,
        cameras=tuple(key[-1] for key in keys if key[:-1] == IMAGE_KEY),
        **values,
    )


def _usable_names(feature: Feature) -> tuple[str, ...] | None:
    """Return the names if there is one for each dimension, all different."""
    names = feature.names
    fits = names is not None and len(set(names)) == len(names) == feature.shape[0]
    return names if fits else None
