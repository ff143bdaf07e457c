"""Robot metadata of a LeRobot dataset."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from tensordict import TensorDict
from torch import Tensor

from torchrl_vla.data.lerobot.folder_layout import OWNER, Feature, LeRobotLayout
from torchrl_vla.data.lerobot.stored_statistics import Stored, feature_statistics
from torchrl_vla.schema import (
    ACTION_KEY,
    IMAGE_KEY,
    STATE_KEY,
    RobotDatasetMetadata,
    SchemaError,
    to_canonical,
    to_lerobot,
)
from torchrl_vla.schema.compatibility import differences
from torchrl_vla.schema.lerobot_names import DECLARED_FILE

#: The names that LeRobot gives to joints that nobody named.
_PLACEHOLDER = re.compile(r"motor_\d+")


def read_metadata(
    layout: LeRobotLayout,
    frames: TensorDict,
    stored: Stored,
    *,
    statistics: str,
    cameras: Iterable[str],
    dataset_id: str,
) -> RobotDatasetMetadata:
    """Fill in what LeRobot declares: names, rate, robot, cameras and statistics.

    What it has no field for is read from ``meta/torchrl_vla.json``, where our writer
    puts it; that file has to agree with LeRobot's own.
    """
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
    metadata = RobotDatasetMetadata(
        dataset_id,
        embodiment_id=None if layout.robot_type == "unknown" else layout.robot_type,
        control_frequency_hz=layout.rate_hz,
        cameras=tuple(key[-1] for key in keys if key[:-1] == IMAGE_KEY),
        **values,
    )
    return _with_declared(metadata, layout.root / DECLARED_FILE)


def _with_declared(metadata: RobotDatasetMetadata, path: Path) -> RobotDatasetMetadata:
    if not path.is_file():
        return metadata
    declared = RobotDatasetMetadata.from_json(path)
    wrong = differences(replace(metadata, cameras=()), declared)
    if wrong:
        raise SchemaError(
            f"{OWNER}: expected {DECLARED_FILE!r} to agree with 'meta/info.json', got "
            f"{'; '.join(wrong)}. If the dataset was changed since it was written, "
            "delete that file or correct it."
        )
    return replace(
        declared,
        action_statistics=metadata.action_statistics,
        state_statistics=metadata.state_statistics,
        cameras=metadata.cameras,
    )


def _usable_names(feature: Feature) -> tuple[str, ...] | None:
    """Return the names if there is one for each dimension, and they say something."""
    names = feature.names
    fits = names is not None and len(set(names)) == len(names) == feature.shape[0]
    return names if fits and not all(map(_PLACEHOLDER.fullmatch, names)) else None
