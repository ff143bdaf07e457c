"""Robot metadata of a LeRobot dataset."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tensordict import NestedKey, TensorDict
from torch import Tensor

from torchrl_vla.data.lerobot.folder_layout import LeRobotLayout
from torchrl_vla.data.lerobot.lerobot_feature import OWNER, Feature
from torchrl_vla.data.lerobot.stored_statistics import Stored, feature_statistics
from torchrl_vla.schema import (
    ACTION_KEY,
    IMAGE_KEY,
    STATE_KEY,
    FeatureStatistics,
    RobotDatasetMetadata,
    SchemaError,
)
from torchrl_vla.schema.compatibility import differences
from torchrl_vla.schema.lerobot_names import DECLARED_FILE

#: LeRobot's names of joints without declared names.
_PLACEHOLDER = re.compile(r"motor_\d+")


def read_metadata(
    layout: LeRobotLayout,
    frames: TensorDict,
    stored: Stored,
    *,
    statistics: str,
    dataset_id: str,
) -> RobotDatasetMetadata:
    """Return the names, rate, robot, cameras and statistics that LeRobot declares.

    Fields that LeRobot does not have are read from ``meta/torchrl_vla.json``, which our
    writer adds; that file must agree with LeRobot's own.
    """
    keys = [feature.key for feature in layout.features.values() if feature.is_image]

    def vector(
        key: NestedKey,
    ) -> tuple[tuple[str, ...] | None, FeatureStatistics | None]:
        parts = [part for part in layout.features.values() if part.key == key]
        if not parts:
            return None, None
        for part in parts:
            if not part.is_vector:
                raise SchemaError(
                    f"{OWNER}: expected one dimension at feature {part.name!r}, got "
                    f"shape {part.shape}. Give it another name with rename={{"
                    f"{part.name!r}: ...}} (--rename {part.name} NEW)."
                )
        parts.sort(key=lambda part: part.columns or (0, 0))
        samples = frames.get(key).as_subclass(Tensor)
        return _usable_names(parts), feature_statistics(
            stored, parts, samples, statistics
        )

    action_names, action_statistics = vector(ACTION_KEY)
    state_names, state_statistics = vector(STATE_KEY)
    metadata = RobotDatasetMetadata(
        dataset_id,
        embodiment_id=None if layout.robot_type == "unknown" else layout.robot_type,
        control_frequency_hz=layout.rate_hz,
        cameras=tuple(key[-1] for key in keys if key[:-1] == IMAGE_KEY),
        action_names=action_names,
        action_statistics=action_statistics,
        state_names=state_names,
        state_statistics=state_statistics,
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
        control_frequency_hz=declared.control_frequency_hz
        or metadata.control_frequency_hz,
    )


def _usable_names(parts: Sequence[Feature]) -> tuple[str, ...] | None:
    """Return the names if there is one per dimension and they are no placeholders."""
    names = tuple(name for part in parts for name in part.names or ())
    fits = len(set(names)) == len(names) == sum(part.shape[0] for part in parts)
    return names if fits and not all(map(_PLACEHOLDER.fullmatch, names)) else None
