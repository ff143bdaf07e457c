"""Schema of recorded frames: mapping of step entries to LeRobot features."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tensordict import (
    NestedKey,
    TensorDictBase,
    is_leaf_nontensor,
    is_non_tensor,
    unravel_key,
)
from torch import Tensor

from torchrl_vla._internal.file_origin import Origin
from torchrl_vla._internal.safe_paths import check_name
from torchrl_vla.data.lerobot.lerobot_feature import (
    INDEX_FEATURES,
    Feature,
    FeatureInfo,
)
from torchrl_vla.schema import (
    ACTION_KEY,
    EPISODE_KEY,
    FRAME_KEY,
    IMAGE_KEY,
    INSTRUCTION_KEY,
    OBSERVATION_KEY,
    STATE_KEY,
    SUCCESS_KEY,
    InstructionTable,
    MetadataError,
    MissingKeyError,
    RobotDatasetMetadata,
    SchemaError,
    instruction_texts,
    is_text,
    to_canonical,
    to_lerobot,
)

OWNER = "LeRobotWriter"
#: Entries that are never features, because the writer numbers the frames.
NUMBERED = (EPISODE_KEY, FRAME_KEY, "timestamp", "task_index", "dataset_index", "index")

_OUTCOMES = ("reward", "done", "terminated", "truncated", SUCCESS_KEY)
_DTYPES = {
    torch.bool: "bool",
    torch.uint8: "uint8",
    torch.int8: "int8",
    torch.int16: "int16",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.float16: "float16",
    torch.float32: "float32",
    torch.float64: "float64",
}
_IMAGE_NAMES = ("height", "width", "channels")
_MOST_DIMENSIONS = 5


def index_features() -> tuple[Feature, ...]:
    """Return the features that number the frames."""
    return tuple(Feature(name, dtype, (1,)) for name, dtype in INDEX_FEATURES.items())


@dataclass(frozen=True)
class FrameSchema:
    """Features of a recording, determined by its first step.

    Args:
        features: in the order of the columns.
    """

    features: tuple[Feature, ...]

    def __post_init__(self) -> None:
        origin = Origin(OWNER, "the recording", "Rename the entry or camera.")
        for feature in self.features:
            check_name(origin, feature.name, "a feature")

    @classmethod
    def from_steps(
        cls,
        steps: TensorDictBase,
        metadata: RobotDatasetMetadata,
        *,
        image_dtype: str,
        extra_keys: Sequence[NestedKey] = (),
    ) -> FrameSchema:
        """Infer the schema from steps ``[T]`` and check it against the metadata.

        Args:
            steps: in the canonical schema.
            metadata: names, dimensions and cameras.

        Keyword Args:
            image_dtype: ``"image"`` or ``"video"``.
            extra_keys: further entries to record.

        Raises:
            MissingKeyError: the action or an extra key is missing.
            SchemaError: an entry cannot be recorded.
            MetadataError: dimensions or cameras contradict the metadata.
        """
        keys = recorded_keys(steps, extra_keys)
        features = tuple(
            _feature(key, steps.get(key), metadata, image_dtype) for key in keys
        )
        _check_cameras(features, metadata)
        return cls(features)

    @classmethod
    def from_info(cls, features: dict[str, FeatureInfo]) -> FrameSchema:
        """Return the schema of :meth:`to_info`'s output."""
        return cls(
            tuple(
                Feature(
                    name,
                    value["dtype"],
                    tuple(value["shape"] or (1,)),
                    tuple(map(str, value["names"] or ())) or None,
                )
                for name, value in features.items()
            )
        )

    def to_info(self) -> dict[str, FeatureInfo]:
        """Return the features in the format of ``info.json``."""
        return {feature.name: feature.to_info() for feature in self.features}

    @property
    def images(self) -> tuple[Feature, ...]:
        """The features of the cameras."""
        return tuple(feature for feature in self.features if feature.is_image)

    @property
    def numbers(self) -> tuple[Feature, ...]:
        """The other features."""
        return tuple(feature for feature in self.features if not feature.is_image)

    def columns(
        self, steps: TensorDictBase, extra_keys: Sequence[NestedKey] = ()
    ) -> dict[str, np.ndarray]:
        """Return the checked values of steps ``[T]`` by feature.

        Returns:
            Images uint8 ``[T, h, w, 3]``, numbers ``[T, *shape]``.

        Raises:
            SchemaError: they differ in kind from the first step, or are not finite.
        """
        keys = recorded_keys(steps, extra_keys)
        found = {to_lerobot(key): key for key in keys}
        expected = {feature.name for feature in self.features}
        if set(found) != expected:
            raise SchemaError(
                f"{OWNER}: expected the entries of the first step in each step, got "
                f"without {sorted(expected - set(found))} and with "
                f"{sorted(set(found) - expected)}. Record every entry in every step, "
                "or leave it out of all."
            )
        return {
            feature.name: _column(feature, steps.get(found[feature.name]))
            for feature in self.features
        }


def recorded_keys(
    steps: TensorDictBase, extra_keys: Iterable[NestedKey] = ()
) -> list[NestedKey]:
    """Return the recorded keys: observations, action, outcomes and extras."""
    keys: list[NestedKey] = []
    observation = steps.get(OBSERVATION_KEY, None)
    if observation is not None:
        for key in observation.keys(True, True, is_leaf=is_leaf_nontensor):
            keys.append(unravel_key((OBSERVATION_KEY, key)))
    keys.append(ACTION_KEY)
    outcomes: list[NestedKey] = [("next", name) for name in _OUTCOMES]
    keys += [key for key in outcomes if steps.get(key, None) is not None]
    keys += [key for key in map(unravel_key, extra_keys) if key not in keys]
    missing = [key for key in keys if steps.get(key, None) is None]
    if missing:
        raise MissingKeyError(
            f"{OWNER}: expected {missing} in the step, got "
            f"{sorted(map(str, steps.keys(True, True)))}."
        )
    taken = [key for key in keys if key in (*NUMBERED, INSTRUCTION_KEY)]
    if taken:
        raise SchemaError(
            f"{OWNER}: expected extra keys that the writer does not number itself, "
            f"got {taken}. Leave them out."
        )
    return keys


def read_tasks(
    steps: TensorDictBase, instructions: InstructionTable | None
) -> list[str]:
    """Return the instruction of each of the steps ``[T]``.

    Raises:
        MissingKeyError: there is no instruction.
        SchemaError: an instruction is blank, or an id without a table.
    """
    value = steps.get(INSTRUCTION_KEY, None)
    if value is None:
        raise MissingKeyError(
            f"{OWNER}: expected an instruction at {INSTRUCTION_KEY!r}, got "
            f"{sorted(map(str, steps.keys(True, True)))}. LeRobot needs a task for "
            "each frame: set a text, or the id of an InstructionTable."
        )
    if is_text(value):
        texts = instruction_texts(value)
        if len(texts) == 1:
            texts *= len(steps)
    elif instructions is None:
        raise SchemaError(
            f"{OWNER}: expected instructions=... to decode the ids at "
            f"{INSTRUCTION_KEY!r}, got None. Pass the table that encoded them."
        )
    else:
        unique, where = value.reshape(-1).cpu().unique(return_inverse=True)
        known = instructions.decode(unique)
        texts = [known[i] for i in where.tolist()]
    wrong = [text for text in texts if not isinstance(text, str) or not text.strip()]
    if wrong or len(texts) != len(steps):
        raise SchemaError(
            f"{OWNER}: expected one instruction with words for each of {len(steps)} "
            f"step(s) at {INSTRUCTION_KEY!r}, got {wrong or texts}."
        )
    return texts


def _is_image(key: NestedKey) -> bool:
    return key == IMAGE_KEY or key[:-1] == IMAGE_KEY


def _feature(
    key: NestedKey, value: Tensor, metadata: RobotDatasetMetadata, image_dtype: str
) -> Feature:
    name = to_lerobot(key)
    if "/" in name:
        raise SchemaError(
            f"{OWNER}: expected names without '/', which LeRobot refuses, got "
            f"{name!r}. Rename the entry."
        )
    if is_non_tensor(value) or value.dtype not in _DTYPES:
        kind = type(value).__name__ if is_non_tensor(value) else value.dtype
        raise SchemaError(
            f"{OWNER}: expected one of {sorted(set(_DTYPES.values()))} at {key!r}, got "
            f"{kind}. Convert the entry, or exclude it."
        )
    if _is_image(key):
        _check_image(key, value)
        c, h, w = value.shape[1:]
        return Feature(name, image_dtype, (h, w, c), _IMAGE_NAMES)
    shape = tuple(value.shape[1:]) or (1,)
    if len(shape) > _MOST_DIMENSIONS or not math.prod(shape):
        raise SchemaError(
            f"{OWNER}: expected values of at most {_MOST_DIMENSIONS} dimensions, none "
            f"of them empty, at {key!r}, got shape {shape} a step."
        )
    declared, size, names = "", None, None
    if key == ACTION_KEY:
        declared, size, names = (
            "action_dim",
            metadata.action_dim,
            metadata.action_names,
        )
    elif key == STATE_KEY:
        declared, size, names = "state_dim", metadata.state_dim, metadata.state_names
    if size is not None and shape != (size,):
        raise MetadataError(
            f"{OWNER}: expected {declared}={size} values (the metadata of "
            f"{metadata.dataset_id!r}) at {key!r}, got shape {shape} a step."
        )
    return Feature(name, _DTYPES[value.dtype], shape, names)


def _check_image(key: NestedKey, value: Tensor) -> None:
    shape = tuple(value.shape[1:])
    if value.dtype == torch.uint8 and len(shape) == 3 and shape[0] == 3:
        return
    if len(shape) == 3 and shape[0] != 3 and shape[-1] == 3:
        advice = "This is [h, w, 3]: permute it with image.movedim(-1, -3)."
    elif value.is_floating_point():
        advice = "Convert floats in 0..1 with (255 * image).round().to(torch.uint8)."
    else:
        advice = "Convert it to RGB."
    raise SchemaError(
        f"{OWNER}: expected a uint8 image [3, h, w] at {key!r}, got {value.dtype} "
        f"{list(shape)}. {advice}"
    )


def _check_cameras(features: Sequence[Feature], metadata: RobotDatasetMetadata) -> None:
    declared = metadata.cameras
    keys = [to_canonical(feature.name) for feature in features if feature.is_image]
    if not declared or (keys == [IMAGE_KEY] and len(declared) == 1):
        return
    found = sorted(key[-1] for key in keys)
    if found != sorted(declared):
        raise MetadataError(
            f"{OWNER}: expected the cameras {sorted(declared)} (the metadata of "
            f"{metadata.dataset_id!r}) below {IMAGE_KEY!r}, got {found}. Record them "
            "all, or correct the metadata with dataclasses.replace(metadata, "
            "cameras=...)."
        )


def _column(feature: Feature, value: Tensor) -> np.ndarray:
    key = to_canonical(feature.name)
    if feature.is_image:
        _check_image(key, value)
        h, w, c = feature.shape
        _check_shape(key, tuple(value.shape[1:]), (c, h, w))
        return value.detach().cpu().movedim(-3, -1).contiguous().numpy()
    dtype = None if is_non_tensor(value) else _DTYPES.get(value.dtype)
    if dtype != feature.dtype:
        raise SchemaError(
            f"{OWNER}: expected {feature.dtype} at {key!r}, as in the first step, got "
            f"{dtype or type(value).__name__}."
        )
    _check_shape(key, tuple(value.shape[1:]) or (1,), feature.shape)
    values = value.detach().cpu().reshape(len(value), *feature.shape).numpy()
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        step = int(np.argwhere(~np.isfinite(values))[0, 0])
        raise SchemaError(
            f"{OWNER}: expected finite numbers at {key!r}, got "
            f"{values[step].tolist()}. Repair the step, or discard the episode."
        )
    return values


def _check_shape(
    key: NestedKey, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    if shape != expected:
        raise SchemaError(
            f"{OWNER}: expected shape {list(expected)} at {key!r}, as in the first "
            f"step, got {list(shape)}."
        )
