"""Replay buffer of a weighted mixture of datasets of different robots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.data import ImmutableDatasetWriter, TensorDictReplayBuffer

from torchrl_vla._internal.constructor_signature import ConstructorSignature
from torchrl_vla.data.demonstrations import Demonstrations, merge_instructions
from torchrl_vla.data.mixture.embodiment import Embodiment
from torchrl_vla.data.mixture.mixture_layout import MixtureSizes, common_layout
from torchrl_vla.data.mixture.mixture_sampling import MixtureSampler, MixtureStorage
from torchrl_vla.schema import (
    INSTRUCTION_KEY,
    InstructionTable,
    MissingKeyError,
    SchemaError,
    check_positive_int,
)
from torchrl_vla.transforms import ActionChunkTransform
from torchrl_vla.transforms.affine_scaling import ScalingMode


class MixtureReplay(TensorDictReplayBuffer):
    """Replay buffer of several datasets, of different robots, with weights.

    Each row is sampled from a dataset chosen by its weight, uniformly over its frames.
    It equals a row of that dataset alone: the next ``H`` actions of its own episode at
    its own control rate, normalized by its own statistics. Smaller robots are padded
    with zeros and masked; ``BCLoss`` needs
    ``set_keys(dim_pad_mask="action_dim_is_pad")`` to ignore those dimensions, and
    refuses the batch without it.

    Where frames have ``is_labeled``, a row without a label is padding and adds nothing
    to a loss; where all datasets have a ``sample_weight``, rows keep it.

    The seed determines the batches. ``state_dict()`` and ``load_state_dict()`` continue
    the same stream in another process; there are no epochs.

    **Writes** model space, ``A`` and ``S`` the largest of all robots: ``action`` float
    ``[*B, A]``, ``action_chunk`` ``[*B, H, A]``, ``action_is_pad`` bool ``[*B, H]``,
    ``action_dim_is_pad`` bool ``[*B, A]``, ``("observation", "state")`` ``[*B, S]``,
    ``state_dim_is_pad`` bool ``[*B, S]``, ``("observation", "image")`` uint8,
    ``language_instruction`` (ids of :attr:`instructions`), ``embodiment_index`` (which
    dataset), ``episode_index`` and ``frame_index`` (of that dataset), ``index`` (of the
    mixture) and, with ``cameras``, ``camera_is_pad`` bool ``{camera: [*B]}``.

    Args:
        datasets: at least one, with statistics.
        weights: share of each dataset in the rows, in any unit. None = its number of
            frames.

    Keyword Args:
        batch_size: rows of a batch.
        chunk_size: ``H``, the same number of steps for all datasets, and so a different
            duration where control rates differ.
        cameras: for each dataset, the key of its image for each common camera name,
            e.g. ``{"front": ("observation", "image", "top"), "wrist": None}``. None
            means that it lacks the camera, whose image is black and masked. Cameras
            without a name are left out. If this argument is None, all datasets must
            have the same images.
        sizes: requested sizes; None = computed from the datasets.
        mode: how actions and states are normalized.
        seed: of the batches.

    Raises:
        ValueError: there are no datasets, a weight is not a positive number, or a
            dataset is larger than the requested sizes.
        MetadataError: a dataset has no statistics.
        MissingKeyError: a dataset lacks an action, instruction or image.
        SchemaError: the cameras or images of the datasets do not agree.

    Examples:
        >>> import tempfile
        >>> from torchrl_vla.data import collect
        >>> from torchrl_vla.envs import TabletopEnv
        >>> env = TabletopEnv(4, image_size=16)
        >>> def record(seed):
        ...     options = {"folder": tempfile.mkdtemp(), "progress": False}
        ...     return collect(env, env.make_expert(), 2, seed=seed, **options)
        >>> near, far = record(0), record(1)
        >>> mixture = MixtureReplay([near, far], [3, 1], batch_size=8, chunk_size=5)
        >>> batch = mixture.sample()
        >>> batch["action_chunk"].shape, batch["embodiment_index"].shape
        (torch.Size([8, 5, 2]), torch.Size([8]))
        >>> state = mixture.state_dict()
        >>> later = mixture.sample()["index"]
        >>> mixture.load_state_dict(state)
        >>> torch.equal(mixture.sample()["index"], later)
        True

    Source:
        LeRobot's ``MultiLeRobotDataset`` raises ``NotImplementedError`` (0.4.4, 0.6.1),
        and its predecessor kept only the keys that all datasets have.
    """

    __signature__ = ConstructorSignature()

    def __init__(
        self,
        datasets: Sequence[Demonstrations],
        weights: Sequence[float] | None = None,
        *,
        batch_size: int,
        chunk_size: int,
        cameras: Sequence[Mapping[str, NestedKey | None]] | None = None,
        sizes: MixtureSizes | None = None,
        mode: ScalingMode = "mean_std",
        seed: int = 0,
    ) -> None:
        if not datasets:
            raise ValueError("MixtureReplay: expected at least one dataset, got none.")
        check_positive_int("MixtureReplay", "batch_size", batch_size)
        buffers = [
            dataset.replay_buffer(
                batch_size,
                transform=ActionChunkTransform(chunk_size, storage=dataset.storage),
            )
            for dataset in datasets
        ]
        layout = common_layout(
            [f"{i}:{d.metadata.dataset_id}" for i, d in enumerate(datasets)],
            [buffer[torch.tensor([0])] for buffer in buffers],
            cameras,
            sizes or MixtureSizes(),
        )
        #: Conversion of each dataset's frames to rows, and of chunks to its actions.
        self.embodiments = [
            Embodiment(
                index,
                layout.declare(index, dataset.metadata),
                action_dim=layout.action_dim,
                state_dim=layout.state_dim,
                cameras=None if cameras is None else cameras[index],
                image_shapes=layout.image_shapes,
                mode=mode,
            )
            for index, dataset in enumerate(datasets)
        ]
        #: The instructions of all datasets.
        self.instructions = _checked_instructions(datasets)
        #: Share of each dataset in the rows, float64 ``[N]``.
        self.weights = _normalize_weights(weights, list(map(len, datasets)))
        self.chunk_size = chunk_size
        super().__init__(
            storage=MixtureStorage(buffers, self.embodiments),
            sampler=MixtureSampler(self.weights),
            writer=ImmutableDatasetWriter(),
            collate_fn=_identity,
            batch_size=batch_size,
            generator=torch.Generator().manual_seed(seed),
        )

    def denormalize(self, chunk: Tensor, embodiment_index: Tensor) -> Tensor:
        """Return model-space actions in the robot space of each row's dataset.

        Padded dimensions are 0. ``Embodiment.to_robot_space`` returns the actions of
        one robot without them.

        Args:
            chunk: float ``[*B, H, A]`` or ``[*B, A]``.
            embodiment_index: int64 ``[*B]``.

        Raises:
            SchemaError: the last dimension is not ``A``, the batches differ, or an
                embodiment index is out of range.
        """
        batch, dim = embodiment_index.shape, self.embodiments[0].action_dim
        middle = chunk.ndim - len(batch) - 1
        if (
            chunk.shape[-1:] != (dim,)
            or chunk.shape[: len(batch)] != batch
            or middle not in (0, 1)
        ):
            raise SchemaError(
                f"MixtureReplay.denormalize: expected actions [*B, {dim}] or [*B, H, "
                f"{dim}] with *B = {list(batch)} of the embodiment indices, got shape "
                f"{list(chunk.shape)}."
            )
        inside = (embodiment_index >= 0) & (embodiment_index < len(self.embodiments))
        if not inside.all():
            raise SchemaError(
                "MixtureReplay.denormalize: expected embodiment indices below "
                f"{len(self.embodiments)}, got "
                f"{embodiment_index[~inside].unique().tolist()}."
            )
        loc, scale, is_pad = (
            table.to(chunk.device)[embodiment_index].unflatten(
                -1, (1,) * middle + (-1,)
            )
            for table in self._scaling_tables()
        )
        return torch.where(is_pad, 0.0, chunk * scale + loc)

    def _scaling_tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return loc, scale and is_pad, each ``[N, A]``."""
        is_pad = torch.stack([e.action_dim_is_pad for e in self.embodiments])
        loc, scale = torch.zeros(is_pad.shape), torch.ones(is_pad.shape)
        for row, embodiment in enumerate(self.embodiments):
            loc[row, ~is_pad[row]] = embodiment.action_scaling.loc
            scale[row, ~is_pad[row]] = embodiment.action_scaling.scale
        return loc, scale, is_pad

    def __repr__(self) -> str:
        lengths = self._storage.lengths.tolist()
        lines = [
            f"{type(self).__name__}: {len(self)} frames",
            f"{'share':>8} {'frames':>9}  embodiment",
        ]
        for weight, frames, member in zip(
            self.weights, lengths, self.embodiments, strict=True
        ):
            lines.append(f"{weight:>8.3f} {frames:>9}  {member}")
        return "\n".join(lines)


def _checked_instructions(datasets: Sequence[Demonstrations]) -> InstructionTable:
    for dataset in datasets:
        ids = dataset.frames.get(INSTRUCTION_KEY, None)
        if ids is None:
            raise MissingKeyError(
                f"MixtureReplay: expected {INSTRUCTION_KEY!r} in the frames of "
                f"{dataset.metadata.dataset_id!r}, got only "
                f"{sorted(map(str, dataset.frames.keys(True, True)))}."
            )
        dataset.instructions.rows(ids)  # raises for ids without a text
    return merge_instructions(datasets)


def _normalize_weights(weights: Sequence[float] | None, frames: list[int]) -> Tensor:
    values = torch.as_tensor(frames if weights is None else weights).to(torch.float64)
    if values.shape != (len(frames),):
        raise ValueError(
            f"MixtureReplay: expected one weight for each of {len(frames)} datasets, "
            f"got shape {list(values.shape)}."
        )
    if not (values.isfinite() & (values > 0)).all():
        raise ValueError(
            "MixtureReplay: expected positive finite weights, got "
            f"{values.tolist()}. Drop datasets that must not be sampled."
        )
    return values / values.sum()


def _identity(batch: TensorDictBase) -> TensorDictBase:
    return batch
