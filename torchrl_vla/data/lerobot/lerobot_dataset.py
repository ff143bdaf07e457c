"""A LeRobot dataset as demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tensordict import NestedKey, TensorDict
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer, TensorStorage
from torchrl.data.replay_buffers.samplers import Sampler
from torchrl.envs import Transform

from torchrl_vla.data.demonstration_dataset import make_frame_buffer, split_episodes
from torchrl_vla.data.lerobot.dataset_cache import cached_copy, default_cache_folder
from torchrl_vla.data.lerobot.folder_layout import OWNER, Feature, LeRobotLayout
from torchrl_vla.data.lerobot.frame_table import read_frames
from torchrl_vla.data.lerobot.image_reader import (
    EncodedCamera,
    ImageReader,
    VideoCamera,
)
from torchrl_vla.data.lerobot.lerobot_metadata import read_metadata
from torchrl_vla.data.lerobot.recorded_observations import RecordedObservations
from torchrl_vla.data.lerobot.stored_statistics import STATISTICS, Stored, read_stored
from torchrl_vla.data.lerobot.video_decoder import decoder_name
from torchrl_vla.schema import (
    EPISODE_KEY,
    INSTRUCTION_KEY,
    InstructionTable,
    RobotDatasetMetadata,
    SchemaError,
    import_extra,
    to_canonical,
)


class LeRobotDemonstrations:
    """Demonstrations of a LeRobot dataset, formats v2.1 and v3.0, without LeRobot.

    The numbers (actions, states, indices, rewards) are copied once into a
    memory-mapped TensorDict, in a cache of the user's and never in the dataset;
    images stay encoded until they are sampled. Floats are float32 and integers
    int64, as ``LeRobotDataset`` gives them, the images uint8. Text columns other
    than the task are left out. LeRobot's names become ours, see
    :func:`~torchrl_vla.schema.to_canonical`; the task is the id
    ``language_instruction``, which is absent where the only task is an empty text.

    The surprise is in LeRobot's statistics. Mean, standard deviation, min and max are
    the data's, but the stored quantiles ``q01`` and ``q99`` are averages of each
    episode's quantiles, which lie too far inside: a box made of them cuts off more
    than 1 % on either side. ``statistics="stored"`` gives LeRobot's numbers, which a
    checkpoint that was trained with them needs (quantiles that an older file does not
    have are computed); ``"exact"`` computes all from the selected frames.

    Made by :meth:`from_folder` and :meth:`from_hub`.

    Args:
        frames: ``[F]`` selected steps, without images.
        metadata: what the numbers mean, and their statistics.
        instructions: the texts of the ids in ``frames``.

    Keyword Args:
        recorded: all frames of the dataset, in the order of its images.
        reader: decodes the images of rows of ``recorded``; None = no cameras.
        camera_keys: where each of the reader's cameras goes.
        stored_statistics: what the dataset stores, by LeRobot's names.

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
        >>> dataset = LeRobotDemonstrations.from_folder(
        ...     folder, cache_folder=tempfile.mkdtemp()
        ... )
        >>> dataset.num_episodes, dataset.frames["action"].shape
        (2, torch.Size([10, 2]))
    """

    def __init__(
        self,
        frames: TensorDict,
        metadata: RobotDatasetMetadata,
        instructions: InstructionTable,
        *,
        recorded: TensorDict,
        reader: ImageReader | None,
        camera_keys: dict[str, NestedKey],
        stored_statistics: Stored,
    ) -> None:
        self.frames = frames
        self.metadata = metadata
        self.instructions = instructions
        #: LeRobot's own statistics of every feature, float64, by LeRobot's names.
        self.stored_statistics = stored_statistics
        #: The frames as a TorchRL storage, for ``ActionChunkTransform(storage=...)``.
        self.storage = TensorStorage(frames)
        self._recorded, self._reader = recorded, reader
        self._camera_keys = camera_keys

    @classmethod
    def from_folder(
        cls,
        folder: Path | str,
        *,
        episodes: Sequence[int] | None = None,
        cameras: Sequence[str] | None = None,
        decoder: str | None = None,
        cache_folder: Path | str | None = None,
        statistics: str = "stored",
        dataset_id: str | None = None,
    ) -> LeRobotDemonstrations:
        """Open a folder, and copy its numbers into the cache if they are not there.

        Args:
            folder: holds ``meta/info.json``.

        Keyword Args:
            episodes: which to keep; None = all.
            cameras: which to decode, by the last part of their name (``"front"`` for
                ``observation.images.front``); None = all, ``()`` = none.
            decoder: of videos, ``"torchcodec"`` or ``"pyav"``; None = torchcodec
                where it loads.
            cache_folder: for the copy; None = ``torchrl_vla/lerobot`` in the user's
                cache. It may be deleted at any time when no process uses it.
            statistics: ``"stored"`` or ``"exact"``.
            dataset_id: for the metadata; None = the folder's name.

        Raises:
            FileNotFoundError: there is no such folder, or files are missing.
            SchemaError: another format, an unfinished recording, or data that the
                metadata contradict.
            MetadataError: the stored statistics are missing or cannot be true.
            ValueError: an unknown episode, camera, decoder or kind of statistics.
        """
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{OWNER}: expected a LeRobot dataset at {str(folder)!r}, got nothing. "
                "For one of the Hub pass its repository id, 'user/name'."
            )
        if statistics not in STATISTICS:
            raise ValueError(
                f"{OWNER}: expected statistics of {STATISTICS}, got {statistics!r}."
            )
        layout = LeRobotLayout.from_folder(folder)
        features = _choose_cameras(layout, cameras)
        where = default_cache_folder() if cache_folder is None else cache_folder
        copy = cached_copy(layout, Path(where))
        recorded, instructions = read_frames(copy)
        frames = _choose_episodes(recorded, episodes)
        stored = read_stored(folder)
        return cls(
            frames,
            read_metadata(
                layout,
                frames,
                stored,
                statistics=statistics,
                cameras=features,
                dataset_id=dataset_id or folder.resolve().name,
            ),
            instructions,
            recorded=recorded,
            reader=_reader(features, copy, decoder_name(decoder)),
            camera_keys={name: to_canonical(name) for name in features},
            stored_statistics=stored,
        )

    @classmethod
    def from_hub(
        cls,
        repo_id: str,
        *,
        revision: str | None = None,
        episodes: Sequence[int] | None = None,
        cameras: Sequence[str] | None = None,
        decoder: str | None = None,
        cache_folder: Path | str | None = None,
        statistics: str = "stored",
    ) -> LeRobotDemonstrations:
        """Download a dataset of the Hugging Face Hub, or find it in its cache.

        Args:
            repo_id: ``"user/name"``.

        Keyword Args:
            revision: branch, tag or commit; None = the main branch.
            episodes: like the rest, see :meth:`from_folder`.
            cameras: which to decode.
            decoder: of videos.
            cache_folder: for the copy of the numbers.
            statistics: ``"stored"`` or ``"exact"``.

        Raises:
            FileNotFoundError: it is not in the cache and the Hub is out of reach, or
                not to be asked (``HF_HUB_OFFLINE=1``).
        """
        hub = import_extra("huggingface_hub", "datasets", OWNER)
        errors = import_extra("huggingface_hub.errors", "datasets", OWNER)
        try:
            folder = hub.snapshot_download(
                repo_id, repo_type="dataset", revision=revision
            )
        except errors.LocalEntryNotFoundError as error:
            raise FileNotFoundError(
                f"{OWNER}: expected the dataset {repo_id!r} on the Hub or in its local "
                f"cache, got neither: {error}"
            ) from error
        return cls.from_folder(
            folder,
            episodes=episodes,
            cameras=cameras,
            decoder=decoder,
            cache_folder=cache_folder,
            statistics=statistics,
            dataset_id=repo_id,
        )

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def episodes(self) -> Tensor:
        """The indices of the episodes, int64, ascending."""
        return self.frames.get(EPISODE_KEY).as_subclass(Tensor).unique()

    @property
    def num_episodes(self) -> int:
        """How many episodes there are."""
        return len(self.episodes)

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras that are decoded, by LeRobot's names."""
        return tuple(self._camera_keys)

    def observations(self, history_size: int = 1) -> RecordedObservations | None:
        """Make the transform that decodes images and gathers history.

        None where there is nothing to add: no camera and no history.
        """
        if history_size == 1 and self._reader is None:
            return None
        return RecordedObservations(
            self._recorded,
            self._reader,
            camera_keys=self._camera_keys,
            history_size=history_size,
        )

    def replay_buffer(
        self,
        batch_size: int,
        *,
        history_size: int = 1,
        transform: Transform | None = None,
        sampler: Sampler | None = None,
        seed: int | None = None,
    ) -> TensorDictReplayBuffer:
        """Make a buffer over the frames; i.i.d. frames unless a sampler is given.

        Images are decoded, and with ``history_size`` above 1 as many observations
        gathered in ``observation_history``, before ``transform`` sees the sample.
        """
        steps = [self.observations(history_size), transform]
        return make_frame_buffer(self.storage, batch_size, steps, sampler, seed)

    def select_episodes(
        self, episodes: Tensor | Sequence[int]
    ) -> LeRobotDemonstrations:
        """Return the dataset of some episodes, with the same metadata.

        The numbers of a part are in memory. Statistics stay those of the whole: a
        policy trained on a part must act with the statistics it was trained with.

        Raises:
            ValueError: the dataset has no such episode, or none is left.
        """
        return LeRobotDemonstrations(
            _choose_episodes(self.frames, episodes),
            self.metadata,
            self.instructions,
            recorded=self._recorded,
            reader=self._reader,
            camera_keys=self._camera_keys,
            stored_statistics=self.stored_statistics,
        )

    def split(
        self, fraction: float, seed: int = 0
    ) -> tuple[LeRobotDemonstrations, LeRobotDemonstrations]:
        """Split by episode into a part of ``fraction`` and the rest.

        Raises:
            ValueError: one part would be empty.
        """
        first, second = split_episodes(OWNER, self.episodes, fraction, seed)
        return self.select_episodes(first), self.select_episodes(second)

    def __repr__(self) -> str:
        cameras = ", ".join(self.cameras) or "none"
        lines = [
            f"{OWNER} {self.metadata.dataset_id!r}: {self.num_episodes} episodes, "
            f"{len(self)} frames, cameras: {cameras}",
        ]
        if INSTRUCTION_KEY in self.frames:
            lines.append(f"{'episodes':>9} {'frames':>9}  instruction")
            rows = self.instructions.rows(self.frames.get(INSTRUCTION_KEY))
            episodes = self.frames.get(EPISODE_KEY)
            for row, text in enumerate(self.instructions.texts):
                mine = episodes[rows == row]
                if len(mine):
                    lines.append(f"{len(mine.unique()):>9} {len(mine):>9}  {text}")
        return "\n".join(lines)


def _choose_cameras(
    layout: LeRobotLayout, cameras: Sequence[str] | None
) -> dict[str, Feature]:
    images = {k: v for k, v in layout.features.items() if v.is_image}
    names = {}
    for name in images:
        key = to_canonical(name)
        if key[0] != "observation":
            raise SchemaError(
                f"{OWNER}: expected cameras below 'observation.', got {name!r}."
            )
        names[key[-1]] = name
    if cameras is None:
        return images
    if isinstance(cameras, str):
        cameras = (cameras,)
    unknown = sorted(set(cameras) - set(names))
    if unknown:
        raise ValueError(
            f"{OWNER}: expected cameras of {sorted(names)}, got {unknown}."
        )
    return {names[camera]: images[names[camera]] for camera in cameras}


def _choose_episodes(
    frames: TensorDict, episodes: Tensor | Sequence[int] | None
) -> TensorDict:
    if episodes is None:
        return frames
    episodes = torch.as_tensor(episodes, dtype=torch.int64)
    mine = frames.get(EPISODE_KEY).as_subclass(Tensor)
    known = mine.unique()
    unknown = episodes[~torch.isin(episodes, known)].tolist()
    if unknown or not len(episodes):
        raise ValueError(
            f"{OWNER}: expected some of the {len(known)} episodes from {int(known[0])} "
            f"to {int(known[-1])}, got {unknown or 'none'}."
        )
    return frames[torch.isin(mine, episodes)]


def _reader(
    features: dict[str, Feature], copy: Path, decoder: str
) -> ImageReader | None:
    if not features:
        return None
    kinds = {"image": EncodedCamera, "video": VideoCamera}
    cameras = {
        name: kinds[feature.dtype](name, feature.image_shape, copy / "images" / name)
        for name, feature in features.items()
    }
    return ImageReader(cameras, decoder)
