"""A replay buffer over a LeRobot dataset."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tensordict import TensorDictBase
from torchrl.data import RandomSampler, TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import Sampler
from torchrl.envs import Compose, Transform

from torchrl_vla.data.lerobot.lerobot_dataset import LeRobotDemonstrations
from torchrl_vla.schema import InstructionTable, RobotDatasetMetadata
from torchrl_vla.schema.lerobot_names import is_repo_id
from torchrl_vla.transforms import ActionChunkTransform


class LeRobotExperienceReplay(TensorDictReplayBuffer):
    """Sample frames of a LeRobot dataset, v2.1 or v3.0, without LeRobot.

    A sample is a batch of i.i.d. frames of all selected episodes, up to their last:
    chunks and history are clamped at the episode's ends and masked there. Images
    are decoded in batches, each frame once. What the numbers are, and what is wrong
    with LeRobot's stored quantiles, is told by :class:`LeRobotDemonstrations`.

    **Reads** a folder, or a repository of the Hugging Face Hub.

    **Writes** in robot space ``action`` float32 ``[B, A]`` and the dataset's other
    columns under our names; ``language_instruction`` int64 ``[B]``; each camera uint8
    ``[B, C, h, w]``. With ``chunk_size`` also ``action_chunk`` ``[B, H, A]`` and
    ``action_is_pad`` bool ``[B, H]``. With ``history_size`` above 1 also
    ``observation_history`` ``[B, T, ...]`` and ``history_is_pad`` bool ``[B, T]``.
    TorchRL adds ``index``, the row in the buffer.

    Args:
        source: a folder, ``"user/name"`` on the Hub (a folder of that name wins), or
            an open dataset, which has its cameras, decoder and statistics already.
        batch_size: frames per sample.

    Keyword Args:
        chunk_size: ``H``; None = no chunks.
        first_step: the chunk's first action, in steps from the frame; see
            :class:`~torchrl_vla.transforms.ActionChunkTransform`.
        history_size: ``T``, how many observations, with the current one.
        episodes: which to keep; None = all.
        cameras: which to decode; None = all, ``()`` = none.
        decoder: of videos, ``"torchcodec"`` or ``"pyav"``; None = torchcodec where it
            loads.
        revision: branch, tag or commit on the Hub.
        cache_folder: for the memory-mapped copy; None = the user's cache.
        statistics: ``"stored"`` or ``"exact"``.
        sampler: None = i.i.d. frames.
        transform: applied last, e.g. :class:`~torchrl_vla.transforms.ActionScaling`.
        seed: of the sampler.

    Raises:
        FileNotFoundError: there is no such folder or repository.
        SchemaError: another format, an unfinished recording, or data that the
            metadata contradict.
        MetadataError: the stored statistics are missing or cannot be true.
        ValueError: an argument is none of the choices.

    Examples:
        >>> import tempfile
        >>> from torchrl_vla.data import write_lerobot
        >>> from torchrl_vla.envs import TabletopEnv
        >>> env = TabletopEnv(2, image_size=16, seed=0)
        >>> folder = write_lerobot(
        ...     env.rollout(5, env.make_expert(), break_when_any_done=False),
        ...     tempfile.mkdtemp() + "/reach",
        ...     metadata=env.metadata,
        ...     instructions=env.instructions,
        ...     images="png",
        ...     progress=False,
        ... )
        >>> replay = LeRobotExperienceReplay(
        ...     folder, 8, chunk_size=3, seed=0, cache_folder=tempfile.mkdtemp()
        ... )
        >>> sample = replay.sample()
        >>> sample["action_chunk"].shape, sample["observation", "image"].shape
        (torch.Size([8, 3, 2]), torch.Size([8, 3, 16, 16]))
        >>> sum(len(batch) for batch in replay.iter_epoch(4))
        10
    """

    def __init__(
        self,
        source: str | Path | LeRobotDemonstrations,
        batch_size: int,
        *,
        chunk_size: int | None = None,
        first_step: int = 0,
        history_size: int = 1,
        episodes: Sequence[int] | None = None,
        cameras: Sequence[str] | None = None,
        decoder: str | None = None,
        revision: str | None = None,
        cache_folder: Path | str | None = None,
        statistics: str = "stored",
        sampler: Sampler | None = None,
        transform: Transform | None = None,
        seed: int | None = None,
    ) -> None:
        if isinstance(source, LeRobotDemonstrations):
            options = {"cameras": cameras, "decoder": decoder, "revision": revision}
            options |= {"cache_folder": cache_folder, "statistics": statistics}
            _check_is_open(options)
            dataset = source if episodes is None else source.select_episodes(episodes)
        else:
            open_dataset, options = _find(source, revision)
            dataset = open_dataset(
                source,
                **options,
                episodes=episodes,
                cameras=cameras,
                decoder=decoder,
                cache_folder=cache_folder,
                statistics=statistics,
            )
        self.dataset = dataset
        self._settings = {"chunk_size": chunk_size, "first_step": first_step}
        self._settings |= {"history_size": history_size}
        self._settings |= {"sampler": sampler, "transform": transform, "seed": seed}
        steps = [dataset.observations(history_size)]
        if chunk_size is not None:
            # LeRobot's chunks know no end but the episode's, whatever next.done says.
            chunks = ActionChunkTransform(
                chunk_size,
                storage=dataset.storage,
                first_step=first_step,
                done_key=None,
            )
            steps.append(chunks)
        steps = [step for step in (*steps, transform) if step is not None]
        super().__init__(
            storage=dataset.storage,
            sampler=RandomSampler() if sampler is None else sampler,
            batch_size=batch_size,
            transform=Compose(*steps) if steps else None,
        )
        if seed is not None:
            self.set_rng(torch.Generator().manual_seed(seed))

    @property
    def metadata(self) -> RobotDatasetMetadata:
        """What the numbers mean, and their statistics."""
        return self.dataset.metadata

    @property
    def instructions(self) -> InstructionTable:
        """The texts of ``language_instruction``."""
        return self.dataset.instructions

    def split(
        self, fraction: float, seed: int = 0
    ) -> tuple[LeRobotExperienceReplay, LeRobotExperienceReplay]:
        """Split by episode, e.g. to train and to validate, with the same metadata.

        Raises:
            ValueError: one part would be empty.
        """
        first, second = self.dataset.split(fraction, seed)
        return self._over(first), self._over(second)

    def _over(self, dataset: LeRobotDemonstrations) -> LeRobotExperienceReplay:
        settings = dict(self._settings)
        settings["sampler"] = copy.deepcopy(settings["sampler"])  # each has its own
        if settings["transform"] is not None:
            settings["transform"] = settings["transform"].clone()
        return LeRobotExperienceReplay(dataset, self._batch_size, **settings)

    def iter_epoch(
        self, batch_size: int | None = None, *, seed: int = 0, drop_last: bool = False
    ) -> Iterator[TensorDictBase]:
        """Give each frame once, in an order that the seed decides.

        Args:
            batch_size: None = the buffer's.

        Keyword Args:
            seed: give each epoch another one.
            drop_last: leave out what does not fill a batch.
        """
        size = self._batch_size if batch_size is None else batch_size
        generator = torch.Generator().manual_seed(seed)
        for rows in torch.randperm(len(self), generator=generator).split(size):
            if len(rows) == size or not drop_last:
                yield self[rows].set("index", rows)


def _check_is_open(options: dict[str, object]) -> None:
    """Refuse what only says how to open a dataset, beside one that is open."""
    unused = [k for k, v in options.items() if v not in (None, "stored")]
    if unused:
        raise ValueError(
            f"LeRobotExperienceReplay: expected no {unused} beside an open dataset. "
            "Pass them to LeRobotDemonstrations.from_folder."
        )


def _find(source: str | Path, revision: str | None) -> tuple:
    """Tell a folder, which wins, from a repository's name."""
    if Path(source).expanduser().is_dir():
        if revision is not None:
            raise ValueError(
                "LeRobotExperienceReplay: expected a repository of the Hub beside "
                f"revision={revision!r}, got the folder {str(source)!r}."
            )
        return LeRobotDemonstrations.from_folder, {}
    if not is_repo_id(source):
        raise FileNotFoundError(
            "LeRobotExperienceReplay: expected a folder or a repository 'user/name', "
            f"got {str(source)!r}, which is not there."
        )
    return LeRobotDemonstrations.from_hub, {"revision": revision}
