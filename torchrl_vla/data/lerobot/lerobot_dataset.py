"""Demonstrations of a LeRobot dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, get_args

from tensordict import NestedKey, TensorDict
from torch import Tensor
from torchrl.data import TensorStorage

from torchrl_vla.data.demonstrations import Demonstrations, describe
from torchrl_vla.data.episode_choice import choose_episodes
from torchrl_vla.data.frame_checks import check_finite_frames
from torchrl_vla.data.lerobot.dataset_cache import cached_copy, default_cache_folder
from torchrl_vla.data.lerobot.feature_selection import TOLERANCE_S, Selection
from torchrl_vla.data.lerobot.folder_layout import LeRobotLayout
from torchrl_vla.data.lerobot.frame_table import read_frames
from torchrl_vla.data.lerobot.image_reader import (
    Camera,
    EncodedCamera,
    ImageReader,
    VideoCamera,
)
from torchrl_vla.data.lerobot.lerobot_feature import OWNER, Feature
from torchrl_vla.data.lerobot.lerobot_metadata import read_metadata
from torchrl_vla.data.lerobot.recorded_observations import RecordedObservations
from torchrl_vla.data.lerobot.stored_statistics import (
    StatisticsSource,
    Stored,
    read_stored,
)
from torchrl_vla.data.lerobot.video_decoder import decoder_name
from torchrl_vla.schema import (
    InstructionTable,
    RobotDatasetMetadata,
    import_extra,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack


class OpenOptions(TypedDict, total=False):
    """Options of :meth:`LeRobotDemonstrations.from_folder`."""

    episodes: Sequence[int] | None
    exclude_episodes: Sequence[int]
    cameras: Sequence[str] | None
    rename: Mapping[str, str] | None
    decoder: str | None
    cache_folder: Path | str | None
    statistics: StatisticsSource
    tolerance_s: float
    empty_task: str | None


class HubOptions(OpenOptions, total=False):
    """Options of :meth:`LeRobotDemonstrations.from_hub`."""

    revision: str | None


class LeRobotDemonstrations(Demonstrations):
    """Demonstrations of a LeRobot dataset, formats v2.1 and v3.0, without LeRobot.

    The numbers (actions, states, indices, rewards) are copied once into a memory-mapped
    TensorDict in the user's cache; the dataset itself is not modified. Images remain
    encoded until they are sampled. Floats are float32 and integers int64, as in
    ``LeRobotDataset``, images uint8. Text columns except the task are left out.
    :func:`~torchrl_vla.schema.to_canonical` maps LeRobot's names to ours; the task
    becomes the id ``language_instruction``, which is absent if the only task is an
    empty text.

    Create one with :meth:`from_folder` or :meth:`from_hub`.

    Warning:
        LeRobot stores averages of the quantiles of each episode as ``q01`` and ``q99``.
        Their range is too narrow: clipping to it cuts off more than 1 % of the data on
        either side. So the statistics are computed from the selected frames
        (``statistics="exact"``). ``"stored"`` takes LeRobot's numbers, which
        checkpoints trained with them need; missing quantiles are computed.

    Args:
        frames: ``[F]`` selected steps, without images.
        metadata: names, units and statistics of the numbers in ``frames``.
        instructions: the texts of the ids in ``frames``.

    Keyword Args:
        recorded: all frames of the dataset, in the order of its images.
        reader: decodes the images of rows of ``recorded``; None = no cameras.
        camera_keys: the key of each camera of the reader.
        stored_statistics: the dataset's stored statistics, by LeRobot's names.

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
        self.storage = TensorStorage(frames)
        self._recorded, self._reader = recorded, reader
        self._camera_keys = camera_keys

    @classmethod
    def from_folder(
        cls,
        folder: Path | str,
        *,
        episodes: Sequence[int] | None = None,
        exclude_episodes: Sequence[int] = (),
        cameras: Sequence[str] | None = None,
        rename: Mapping[str, str] | None = None,
        decoder: str | None = None,
        cache_folder: Path | str | None = None,
        statistics: StatisticsSource = "exact",
        tolerance_s: float = TOLERANCE_S,
        empty_task: str | None = None,
        dataset_id: str | None = None,
    ) -> LeRobotDemonstrations:
        """Open a folder, and copy its numbers into the cache on the first call.

        Args:
            folder: contains ``meta/info.json``.

        Keyword Args:
            episodes: indices of the episodes to keep; None = all.
            exclude_episodes: indices of episodes to leave out of those.
            cameras: cameras to decode, by the last part of their name (``"front"`` for
                ``observation.images.front``); None = all, ``()`` = none. Others may be
                depth maps or damaged.
            rename: the dataset's names of features to LeRobot's usual ones, e.g.
                ``{"observation.joints": "observation.state"}``. Several vectors with
                one new name are concatenated in this order.
            decoder: of videos, ``"torchcodec"`` or ``"pyav"``; None = torchcodec if it
                loads.
            cache_folder: for the copy; None = ``torchrl_vla/lerobot`` in the user's
                cache. It may be deleted whenever no process uses it.
            statistics: ``"exact"``, of the selected frames, or ``"stored"``,
                LeRobot's.
            tolerance_s: largest distance of a timestamp from ``frame_index / fps``, and
                of a video frame from its row, as LeRobot's argument of this name.
            empty_task: text of tasks that are empty beside others.
            dataset_id: for the metadata; None = the folder's name.

        Raises:
            FileNotFoundError: the folder or one of its files is missing.
            SchemaError: the format is unknown, the recording is unfinished, or data
                and metadata disagree.
            MetadataError: the stored statistics are missing, impossible, or exclude
                frames.
            ValueError: an episode, camera, decoder or kind of statistics is unknown.
        """
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{OWNER}: expected a LeRobot dataset at {str(folder)!r}, got nothing. "
                "For a dataset of the Hub pass its repository id, 'user/name'."
            )
        if statistics not in get_args(StatisticsSource):
            raise ValueError(
                f"{OWNER}: expected statistics of {get_args(StatisticsSource)}, got "
                f"{statistics!r}."
            )
        chosen = (cameras,) if isinstance(cameras, str) else cameras
        layout = LeRobotLayout.from_folder(
            folder,
            Selection(
                cameras=None if chosen is None else tuple(chosen),
                rename=dict(rename or {}),
                tolerance_s=tolerance_s,
                empty_task=empty_task,
            ),
        )
        images = {k: v for k, v in layout.features.items() if v.is_image}
        where = default_cache_folder() if cache_folder is None else cache_folder
        copy = cached_copy(layout, Path(where))
        recorded, instructions = read_frames(copy)
        frames = choose_episodes(OWNER, recorded, episodes, exclude_episodes)
        check_finite_frames(OWNER, frames)
        stored = read_stored(folder)
        return cls(
            frames,
            read_metadata(
                layout,
                frames,
                stored,
                statistics=statistics,
                dataset_id=dataset_id or folder.resolve().name,
            ),
            instructions,
            recorded=recorded,
            reader=_reader(images, copy, decoder_name(decoder)),
            camera_keys={name: feature.key for name, feature in images.items()},
            stored_statistics=stored,
        )

    @classmethod
    def from_hub(
        cls,
        repo_id: str,
        *,
        revision: str | None = None,
        **options: Unpack[OpenOptions],
    ) -> LeRobotDemonstrations:
        """Download a dataset from the Hugging Face Hub, or open its cached download.

        Args:
            repo_id: ``"user/name"``.

        Keyword Args:
            revision: branch, tag or commit; None = the main branch.
            **options: of :meth:`from_folder`, except ``dataset_id``.

        Raises:
            FileNotFoundError: the dataset is not in the Hub's local cache, and the Hub
                is unreachable or disabled (``HF_HUB_OFFLINE=1``).
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
        return cls.from_folder(folder, dataset_id=repo_id, **options)

    @property
    def cameras(self) -> tuple[str, ...]:
        """The decoded cameras, by LeRobot's names."""
        return tuple(self._camera_keys)

    def observations(self, history_size: int = 1) -> RecordedObservations | None:
        """Make the transform that decodes images and gathers history.

        Returns:
            None without cameras and with ``history_size=1``.
        """
        if history_size == 1 and self._reader is None:
            return None
        return RecordedObservations(
            self._recorded,
            self._reader,
            camera_keys=self._camera_keys,
            history_size=history_size,
        )

    def select_episodes(
        self, episodes: Tensor | Sequence[int]
    ) -> LeRobotDemonstrations:
        """Return the dataset of some episodes, in memory, with the same metadata.

        Raises:
            ValueError: an episode is unknown, or no episode is selected.
        """
        return LeRobotDemonstrations(
            choose_episodes(OWNER, self.frames, episodes),
            self.metadata,
            self.instructions,
            recorded=self._recorded,
            reader=self._reader,
            camera_keys=self._camera_keys,
            stored_statistics=self.stored_statistics,
        )

    def __repr__(self) -> str:
        return describe(self, f", cameras: {', '.join(self.cameras) or 'none'}")


def _reader(
    features: dict[str, Feature], copy: Path, decoder: str
) -> ImageReader | None:
    if not features:
        return None
    cameras: dict[str, Camera] = {}
    for name, feature in features.items():
        kind = EncodedCamera if feature.dtype == "image" else VideoCamera
        cameras[name] = kind(name, feature.image_shape, copy / "images" / name)
    return ImageReader(cameras, decoder)
