"""Open X-Embodiment: TorchRL's dataset in the canonical schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tensordict import NestedKey, NonTensorData, NonTensorStack, TensorDict
from torch import Tensor
from torchrl.data import ReplayBuffer
from torchrl.data.datasets import OpenXExperienceReplay as _TorchRLOpenX

from torchrl_vla.data.demonstration_dataset import DemonstrationDataset
from torchrl_vla.schema import (
    ACTION_KEY,
    EPISODE_KEY,
    FRAME_KEY,
    IMAGE_KEY,
    INSTRUCTION_KEY,
    STATE_KEY,
    FeatureStatistics,
    GripperConvention,
    InstructionTable,
    MissingKeyError,
    RobotDatasetMetadata,
    SchemaError,
)

_OUTCOMES = ("reward", "done", "terminated", "truncated")


@dataclass(frozen=True)
class OpenXConvention:
    """Say where a dataset of Open X-Embodiment keeps what, and what it means.

    Args:
        action_keys: entries that make the action, in this order.
        state_keys: entries that make the state, in this order. Empty = no state.
        cameras: the entry of each camera name. Empty = no images.
        instruction_key: the text of a step.
        metadata: what the numbers mean; its statistics are computed.
    """

    action_keys: Sequence[NestedKey] = (ACTION_KEY,)
    state_keys: Sequence[NestedKey] = (STATE_KEY,)
    cameras: Mapping[str, NestedKey] = field(
        default_factory=lambda: {"image": IMAGE_KEY}
    )
    instruction_key: NestedKey = INSTRUCTION_KEY
    metadata: RobotDatasetMetadata | None = None


def _end_effector(
    name: str, robot: str, rate_hz: float, gripper: str, **options: Any
) -> RobotDatasetMetadata:
    return RobotDatasetMetadata(
        name,
        embodiment_id=robot,
        action_names=("x", "y", "z", "roll", "pitch", "yaw", gripper),
        action_space=("end_effector",) * 6 + ("gripper",),
        control_frequency_hz=rate_hz,
        cameras=("image",),
        **options,
    )


#: Datasets whose conventions are documented, by the dataset configurations and the
#: standardization transforms of Octo and of OpenVLA (keys, order, gripper) and by those
#: of RLDS-based collections that list the control rates. What they do not say (units,
#: the reference of the deltas' frame, which Euler angles) stays undeclared.
OPEN_X_CONVENTIONS: dict[str, OpenXConvention] = {
    # open_gripper: 1 = open. An episode's first action is all zero; OpenVLA drops it.
    "bridge": OpenXConvention(
        action_keys=(
            ("action", "world_vector"),
            ("action", "rotation_delta"),
            ("action", "open_gripper"),
        ),
        instruction_key=("observation", "natural_language_instruction"),
        metadata=_end_effector(
            "bridge",
            "widowx",
            5.0,
            "open_gripper",
            grippers=(GripperConvention(dim=6, open=1.0, closed=0.0),),
        ),
    ),
    # gripper_closedness_action: +1 begins to close, -1 to open, 0 goes on as before.
    # It is a change and not a position, so no GripperConvention describes it.
    "fractal20220817_data": OpenXConvention(
        action_keys=(
            ("action", "world_vector"),
            ("action", "rotation_delta"),
            ("action", "gripper_closedness_action"),
        ),
        state_keys=(
            ("observation", "base_pose_tool_reached"),
            ("observation", "gripper_closed"),
        ),
        instruction_key=("observation", "natural_language_instruction"),
        metadata=_end_effector(
            "fractal20220817_data", "google_robot", 3.0, "gripper_closedness_action"
        ),
    ),
}


class OpenXExperienceReplay(DemonstrationDataset):
    """TorchRL's ``OpenXExperienceReplay``, mapped into the schema and metadata.

    TorchRL downloads and memory-maps; this class renames, and says what the numbers
    mean. Images stay the memory-mapped files that TorchRL wrote. Of TorchRL's layout,
    ``episode`` becomes ``episode_index`` (int64), rows are counted by ``frame_index``,
    text becomes ids, and ``("next", "observation")`` is left out, since it holds zeros
    at the end of each episode.

    **Writes** robot space: ``action`` and ``("observation", "state")`` float32,
    ``("observation", "image")`` uint8 ``[F, 3, h, w]`` (a single camera that is called
    ``image``) or ``("observation", "image", camera)``, ``language_instruction``,
    ``episode_index``, ``frame_index``, ``("next", reward)`` float32 and ``("next",
    done)``, ``terminated``, ``truncated`` bool ``[F, 1]``.

    Exercised here with TorchRL's own class: its conversion of steps and its
    memory-mapped folder, over steps made by the tests in place of those that
    ``datasets`` would load from the Hub. The download itself was not.

    Args:
        frames: ``[F]`` steps in the canonical schema.
        metadata: what the numbers mean, and their statistics.
        instructions: the texts of the ids in ``frames``.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> steps = TensorDict(
        ...     {
        ...         "action": torch.tensor([[0.0], [1.0], [2.0]]),
        ...         "episode": torch.tensor([4, 4, 5], dtype=torch.int32),
        ...     },
        ...     [3],
        ... )
        >>> steps["language_instruction"] = "lift the lid"
        >>> stored = TensorDictReplayBuffer(storage=LazyTensorStorage(3), batch_size=2)
        >>> _ = stored.extend(steps)
        >>> dataset = OpenXExperienceReplay.from_torchrl(
        ...     stored,
        ...     OpenXConvention(state_keys=(), cameras={}),
        ...     dataset_id="cmu_stretch",
        ... )
        >>> dataset.frames["frame_index"], dataset.instructions.texts
        (tensor([0, 1, 0]), ('lift the lid',))
    """

    @classmethod
    def from_root(
        cls,
        dataset_id: str,
        root: Path | str | None = None,
        *,
        convention: OpenXConvention | None = None,
        download: bool = False,
    ) -> OpenXExperienceReplay:
        """Open a dataset that TorchRL has written to ``<root>/<dataset_id>``.

        Args:
            dataset_id: one of TorchRL's ``available_datasets``.
            root: TorchRL's folder of datasets; None = its default.
            convention: where things are; None = that of ``OPEN_X_CONVENTIONS``.
            download: True = let TorchRL download what is not there (needs
                ``datasets`` below 4 and ``torchvision``).

        Raises:
            ValueError: no convention is known and none is given.
            FileNotFoundError: there is no such folder and ``download`` is False.
        """
        if convention is None:
            convention = _known_convention(dataset_id)
        if root is not None and not download and not (Path(root) / dataset_id).is_dir():
            raise FileNotFoundError(
                f"OpenXExperienceReplay: expected a folder at "
                f"{str(Path(root) / dataset_id)!r}, got nothing. Pass download=True, "
                "or the root that TorchRL wrote to."
            )
        replay = _TorchRLOpenX(
            dataset_id, root=root, download=download, streaming=False, batch_size=1
        )
        return cls.from_torchrl(replay, convention, dataset_id=dataset_id)

    @classmethod
    def from_torchrl(
        cls, replay: ReplayBuffer, convention: OpenXConvention, *, dataset_id: str
    ) -> OpenXExperienceReplay:
        """Map a buffer of TorchRL's layout that is already open.

        Raises:
            MissingKeyError: an entry is not there; lists what is.
            SchemaError: an entry is not what the convention says, or the steps of an
                episode are not together.
        """
        steps = replay.storage[:]
        count = len(steps)
        frames = TensorDict({}, [count])
        frames.set(ACTION_KEY, _concatenate(steps, convention.action_keys))
        if convention.state_keys:
            frames.set(STATE_KEY, _concatenate(steps, convention.state_keys))
        for camera, key in convention.cameras.items():
            single = list(convention.cameras) == ["image"]
            frames.set(
                IMAGE_KEY if single else (*IMAGE_KEY, camera), _image(steps, key)
            )
        table = InstructionTable()
        texts = _texts(steps, convention.instruction_key)
        frames.set(INSTRUCTION_KEY, table.encode(texts))
        episode = _get(steps, "episode").to(torch.int64).reshape(count)
        frames.set(EPISODE_KEY, episode)
        frames.set(FRAME_KEY, _count_frames(episode))
        for name in _OUTCOMES:
            if (value := steps.get(("next", name), None)) is not None:
                frames.set(("next", name), value.reshape(count, 1))
        metadata = convention.metadata or RobotDatasetMetadata(dataset_id)
        statistics = {
            "action_statistics": FeatureStatistics.from_samples(frames["action"])
        }
        if convention.state_keys:
            statistics["state_statistics"] = FeatureStatistics.from_samples(
                frames.get(STATE_KEY)
            )
        return cls(frames, replace(metadata, **statistics), table)


def _known_convention(dataset_id: str) -> OpenXConvention:
    if dataset_id not in OPEN_X_CONVENTIONS:
        raise ValueError(
            "OpenXExperienceReplay: expected convention=OpenXConvention(...) for "
            f"{dataset_id!r}, got None. Only {sorted(OPEN_X_CONVENTIONS)} are known."
        )
    return OPEN_X_CONVENTIONS[dataset_id]


def _get(steps: TensorDict, key: NestedKey) -> Any:
    value = steps.get(key, None)
    if value is None:
        raise MissingKeyError(
            f"OpenXExperienceReplay: expected {key!r} in the steps, got only "
            f"{sorted(map(str, steps.keys(True, True)))}. Name the right one in "
            "OpenXConvention(...)."
        )
    return value


def _concatenate(steps: TensorDict, keys: Sequence[NestedKey]) -> Tensor:
    columns = []
    for key in keys:
        value = _get(steps, key)
        if not isinstance(value, Tensor):
            raise SchemaError(
                f"OpenXExperienceReplay: expected numbers at {key!r}, got "
                f"{type(value).__name__} with {sorted(map(str, value.keys()))}. Name "
                "its entries in OpenXConvention(...), in their order."
            )
        columns.append(value.to(torch.float32).reshape(len(steps), -1))
    return torch.cat(columns, dim=-1)


def _image(steps: TensorDict, key: NestedKey) -> Tensor:
    image = _get(steps, key)
    good = isinstance(image, Tensor) and image.dtype == torch.uint8
    if not good or image.ndim != 4 or image.shape[1] != 3:
        what = type(image).__name__
        if isinstance(image, Tensor):
            what = f"{image.dtype} {list(image.shape)}"
        raise SchemaError(
            f"OpenXExperienceReplay: expected uint8 images [F, 3, h, w] at {key!r}, "
            f"got {what}. TorchRL decodes only ('observation', 'image'); leave other "
            "cameras out."
        )
    return image


def _texts(steps: TensorDict, key: NestedKey) -> list[str]:
    leaf = _get(steps, key)
    if isinstance(leaf, NonTensorStack):
        texts = leaf.tolist()
    elif isinstance(leaf, NonTensorData):
        texts = [leaf.data] * len(steps)
    else:
        raise SchemaError(
            f"OpenXExperienceReplay: expected text at {key!r}, got "
            f"{type(leaf).__name__}. Name the entry with the instruction in "
            "OpenXConvention(instruction_key=...)."
        )
    return [text.decode() if isinstance(text, bytes) else text for text in texts]


def _count_frames(episode: Tensor) -> Tensor:
    """Return the step of each row within its episode."""
    first = torch.ones_like(episode, dtype=torch.bool)
    first[1:] = episode[1:] != episode[:-1]
    if int(first.sum()) != len(episode.unique()):
        raise SchemaError(
            "OpenXExperienceReplay: expected the steps of an episode together, got "
            f"{int(first.sum())} runs of {len(episode.unique())} episodes."
        )
    row = torch.arange(len(episode))
    return row - torch.where(first, row, 0).cummax(0).values
