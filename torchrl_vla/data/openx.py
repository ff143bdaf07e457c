"""Open X-Embodiment datasets in the canonical schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from tensordict import NestedKey, TensorDict, is_non_tensor
from torch import Tensor
from torchrl.data import ReplayBuffer
from torchrl.data.datasets import OpenXExperienceReplay as _TorchRLOpenX

from torchrl_vla.data.demonstration_dataset import DemonstrationDataset
from torchrl_vla.data.episode_choice import choose_episodes
from torchrl_vla.data.rollout_frames import frame_statistics
from torchrl_vla.errors import SettingsError
from torchrl_vla.schema import (
    ACTION_KEY,
    EPISODE_KEY,
    FRAME_KEY,
    IMAGE_KEY,
    INSTRUCTION_KEY,
    STATE_KEY,
    GripperConvention,
    InstructionTable,
    MissingKeyError,
    RobotDatasetMetadata,
    SchemaError,
    instruction_texts,
)

_OUTCOMES = ("reward", "done", "terminated", "truncated")


@dataclass(frozen=True)
class OpenXConvention:
    """Names and meaning of the entries of one Open X-Embodiment dataset.

    Args:
        action_keys: entries to concatenate to the action, in this order.
        state_keys: entries to concatenate to the state. Empty = no state.
        cameras: the entry of each camera name. Empty = no images.
        instruction_key: the text of a step.
        metadata: names and units of the numbers; statistics are computed.
    """

    action_keys: Sequence[NestedKey] = (ACTION_KEY,)
    state_keys: Sequence[NestedKey] = (STATE_KEY,)
    cameras: Mapping[str, NestedKey] = field(
        default_factory=lambda: {"image": IMAGE_KEY}
    )
    instruction_key: NestedKey = INSTRUCTION_KEY
    metadata: RobotDatasetMetadata | None = None


def _end_effector(
    name: str,
    robot: str,
    rate_hz: float,
    gripper: str,
    grippers: tuple[GripperConvention, ...] = (),
) -> RobotDatasetMetadata:
    return RobotDatasetMetadata(
        name,
        embodiment_id=robot,
        action_names=("x", "y", "z", "roll", "pitch", "yaw", gripper),
        action_space=("end_effector",) * 6 + ("gripper",),
        control_frequency_hz=rate_hz,
        cameras=("image",),
        grippers=grippers,
    )


#: Datasets with documented conventions. Sources: the dataset configurations and
#: standardization transforms of Octo and OpenVLA (keys, order, gripper), and RLDS-based
#: collections that list the control rates. Units, the reference frame of the deltas
#: and the Euler convention are not documented and remain undeclared.
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
    # gripper_closedness_action: +1 starts to close, -1 to open, 0 keeps the motion.
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
    """TorchRL's ``OpenXExperienceReplay`` in the canonical schema, with metadata.

    TorchRL downloads and memory-maps the data; this class renames the entries and adds
    metadata. Images remain the memory-mapped files that TorchRL wrote. ``episode``
    becomes ``episode_index`` (int64), ``frame_index`` is counted, texts become ids, and
    ``("next", "observation")`` is left out, since TorchRL fills it with zeros at the
    end of each episode.

    **Writes** robot space: ``action`` and ``("observation", "state")`` float32,
    ``("observation", "image")`` uint8 ``[F, 3, h, w]`` (a single camera that is called
    ``image``) or ``("observation", "image", camera)``, ``language_instruction``,
    ``episode_index``, ``frame_index``, ``("next", reward)`` float32 and ``("next",
    done)``, ``terminated``, ``truncated`` bool ``[F, 1]``.

    Note:
        The tests run TorchRL's conversion of steps and its memory-mapped folder on
        synthetic steps. The download from the Hub is not tested.

    Args:
        frames: ``[F]`` steps in the canonical schema.
        metadata: names, units and statistics of the numbers in ``frames``.
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

    def __init__(
        self,
        frames: TensorDict,
        metadata: RobotDatasetMetadata | None = None,
        instructions: InstructionTable | None = None,
        provenance: Mapping[str, object] | None = None,
        **torchrl: object,
    ) -> None:
        if torchrl or metadata is None or instructions is None:
            raise SettingsError(
                "OpenXExperienceReplay: expected frames, metadata and instructions, "
                f"got {type(frames).__name__} and {sorted(torchrl)}. For TorchRL's "
                "arguments write OpenXExperienceReplay.from_root(dataset_id, root, "
                "download=...).replay_buffer(batch_size, slice_len=...), which also "
                "takes num_slices=, sampler= and transform=."
            )
        super().__init__(frames, metadata, instructions, provenance)

    @classmethod
    def from_root(
        cls,
        dataset_id: str,
        root: Path | str | None = None,
        *,
        convention: OpenXConvention | None = None,
        download: bool = False,
        exclude_episodes: Sequence[int] = (),
    ) -> OpenXExperienceReplay:
        """Open a dataset that TorchRL has written to ``<root>/<dataset_id>``.

        Args:
            dataset_id: one of TorchRL's ``available_datasets``.
            root: TorchRL's folder of datasets; None = its default.
            convention: names of the entries; None = that of ``OPEN_X_CONVENTIONS``.
            download: True = let TorchRL download missing files (needs
                ``datasets`` below 4 and ``torchvision``).
            exclude_episodes: values of ``episode`` to leave out.

        Raises:
            ValueError: no convention is known and none is given.
            FileNotFoundError: the folder does not exist and ``download`` is False.
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
        return cls.from_torchrl(
            replay,
            convention,
            dataset_id=dataset_id,
            exclude_episodes=exclude_episodes,
        )

    @classmethod
    def from_torchrl(
        cls,
        replay: ReplayBuffer,
        convention: OpenXConvention,
        *,
        dataset_id: str,
        exclude_episodes: Sequence[int] = (),
    ) -> OpenXExperienceReplay:
        """Map an open buffer of TorchRL's layout.

        Args:
            replay: of TorchRL's ``OpenXExperienceReplay``.
            convention: names of the entries.
            dataset_id: for the metadata.
            exclude_episodes: values of ``episode`` to leave out.

        Raises:
            MissingKeyError: an entry is missing; lists those that exist.
            SchemaError: an entry contradicts the convention, or the steps of an
                episode are not contiguous.
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
        frames = choose_episodes(
            "OpenXExperienceReplay", frames, exclude=exclude_episodes
        )
        statistics = frame_statistics(frames, "OpenXExperienceReplay")
        return cls(frames, replace(metadata, **statistics), table)


def _known_convention(dataset_id: str) -> OpenXConvention:
    if dataset_id not in OPEN_X_CONVENTIONS:
        raise ValueError(
            "OpenXExperienceReplay: expected convention=OpenXConvention(...) for "
            f"{dataset_id!r}, got None. Only {sorted(OPEN_X_CONVENTIONS)} are known."
        )
    return OPEN_X_CONVENTIONS[dataset_id]


def _get(steps: TensorDict, key: NestedKey) -> Tensor:
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
        if not torch.is_tensor(value):
            raise SchemaError(
                f"OpenXExperienceReplay: expected numbers at {key!r}, got "
                f"{type(value).__name__} with {sorted(map(str, value.keys()))}. Name "
                "its entries in OpenXConvention(...), in their order."
            )
        columns.append(value.to(torch.float32).reshape(len(steps), -1))
    return torch.cat(columns, dim=-1)


def _image(steps: TensorDict, key: NestedKey) -> Tensor:
    image = _get(steps, key)
    what = type(image).__name__
    if torch.is_tensor(image):
        if image.dtype == torch.uint8 and image.ndim == 4 and image.shape[1] == 3:
            return image
        what = f"{image.dtype} {list(image.shape)}"
    raise SchemaError(
        f"OpenXExperienceReplay: expected uint8 images [F, 3, h, w] at {key!r}, "
        f"got {what}. TorchRL decodes only ('observation', 'image'); leave other "
        "cameras out."
    )


def _texts(steps: TensorDict, key: NestedKey) -> list[str]:
    leaf = _get(steps, key)
    if not is_non_tensor(leaf):
        raise SchemaError(
            f"OpenXExperienceReplay: expected text at {key!r}, got "
            f"{type(leaf).__name__}. Name the entry with the instruction in "
            "OpenXConvention(instruction_key=...)."
        )
    found = instruction_texts(leaf)
    texts = found * (len(steps) // len(found))  # one text may stand for all steps
    return [text.decode() if isinstance(text, bytes) else text for text in texts]


def _count_frames(episode: Tensor) -> Tensor:
    """Return the step of each row within its episode."""
    first = torch.ones_like(episode, dtype=torch.bool)
    first[1:] = episode[1:] != episode[:-1]
    if int(first.sum()) != len(episode.unique()):
        raise SchemaError(
            "OpenXExperienceReplay: expected the steps of an episode to be "
            "contiguous, got "
            f"{int(first.sum())} runs of {len(episode.unique())} episodes."
        )
    row = torch.arange(len(episode))
    return row - torch.where(first, row, 0).cummax(0).values
