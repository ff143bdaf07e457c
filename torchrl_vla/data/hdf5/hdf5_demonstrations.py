"""Dataset of demonstrations in an HDF5 file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from tensordict import TensorDict
from torch import Tensor
from torchrl.envs import Transform

from torchrl_vla.data.demonstration_dataset import DemonstrationDataset
from torchrl_vla.data.episode_choice import choose_episodes
from torchrl_vla.data.hdf5.hdf5_file import (
    declared_metadata,
    demo_names,
    group,
    libero_instruction,
    masked_demos,
    opened,
    read_demo,
    with_statistics,
)
from torchrl_vla.data.hdf5.hdf5_images import (
    FLIPS,
    Hdf5Images,
    ImageFlip,
    ReadHdf5Images,
)
from torchrl_vla.schema import (
    INSTRUCTION_KEY,
    InstructionTable,
    RobotDatasetMetadata,
    SchemaError,
)

Hdf5Layout = Literal["robomimic", "libero"]


class Hdf5Demonstrations(DemonstrationDataset):
    """Demonstrations in an HDF5 file: numbers in memory, images read when sampled.

    A file of robomimic's layout holds ``data/demo_<i>`` with ``actions``,
    ``obs/<key>`` and ``rewards``; LIBERO's adds the instruction. A file does not
    declare which observations form the state, the orientation of its images, or the
    meaning of its actions: these are arguments of :meth:`from_file`. Episode ``i`` is
    ``demo_<i>``.

    **Writes** robot space: ``action`` ``[F, A]`` and ``("observation", "state")``
    ``[F, S]`` float32, ``("observation", "image", camera)`` uint8 ``[F, 3, h, w]`` (in
    samples only), ``language_instruction``, ``episode_index``, ``frame_index``,
    ``("next", "done")`` bool ``[F, 1]`` at an episode's last frame and, where the file
    has rewards, ``("next", "reward")`` float32 ``[F, 1]``. The file's ``dones`` are
    left out: depending on ``done_mode``, robomimic stores success, the end, or either.

    Args:
        frames: ``[F]`` steps without images.
        metadata: names, units and statistics of the numbers in ``frames``.
        instructions: the texts of the ids in ``frames``.
        images: reader of the images; None = no images.

    Examples:
        >>> import h5py, tempfile
        >>> path = tempfile.mkdtemp() + "/lift.hdf5"
        >>> with h5py.File(path, "w") as file:
        ...     demo = file.create_group("data/demo_0")
        ...     demo["actions"] = [[0.0, 1.0], [2.0, 3.0]]
        ...     demo["obs/eef_pos"] = [[0.1], [0.2]]
        >>> dataset = Hdf5Demonstrations.from_file(
        ...     path,
        ...     layout="robomimic",
        ...     instruction="lift the cube",
        ...     state_keys=["eef_pos"],
        ... )
        >>> dataset.metadata.state_names, len(dataset), dataset.num_episodes
        (('eef_pos_0',), 2, 1)
    """

    def __init__(
        self,
        frames: TensorDict,
        metadata: RobotDatasetMetadata,
        instructions: InstructionTable,
        images: Hdf5Images | None = None,
    ) -> None:
        super().__init__(frames, metadata, instructions)
        self.images = images

    @classmethod
    def from_file(
        cls,
        path: Path | str,
        *,
        layout: Hdf5Layout,
        state_keys: Sequence[str],
        cameras: Mapping[str, str] | None = None,
        flip_images: ImageFlip | None = None,
        instruction: str | None = None,
        filter_key: str | None = None,
        exclude_episodes: Sequence[int] = (),
        metadata: RobotDatasetMetadata | None = None,
    ) -> Hdf5Demonstrations:
        """Open a file.

        Warning:
            LIBERO stores robosuite's renderings, whose first row is the bottom row
            (OpenGL), for both cameras: ``"vertical"`` makes them upright. OpenVLA's and
            LeRobot's versions of LIBERO are rotated by 180 degrees instead, so they are
            mirrored; pass ``"rotate_180"`` to match them or their checkpoints.
            robomimic's scripts store upright images (``"none"``), unless robosuite ran
            with ``IMAGE_CONVENTION="opencv"`` (``"vertical"``). Look at an image.

        Args:
            path: the file.
            layout: ``"robomimic"``, or ``"libero"``, whose files hold the instruction.
            state_keys: entries of ``obs`` to concatenate to the state, in this order,
                e.g. LIBERO's ``("ee_states", "gripper_states")``: position,
                axis-angle, two fingers. Empty = no state.
            cameras: the entry of ``obs`` for each camera name, e.g.
                ``{"front": "agentview_rgb"}``. None = no images.
            flip_images: ``"none"``, ``"vertical"`` or ``"rotate_180"``, applied to the
                stored images. Required with ``cameras``.
            instruction: of all episodes. Required for robomimic's files.
            filter_key: name of a mask in the file, e.g. robomimic's ``"train"`` or
                ``"valid"``; None = all demonstrations.
            exclude_episodes: numbers of demonstrations to leave out.
            metadata: names and units of the numbers; its statistics are replaced by
                those of the file. None = names of the state, and the robot and control
                rate that the file declares.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: an argument is missing or has an unknown value.
            MissingKeyError: the file lacks an entry; lists those that exist.
            SchemaError: lengths or images of a demonstration do not agree, or the file
                is damaged.
            MissingExtraError: ``h5py`` is not installed.
        """
        path = Path(path)
        _check_arguments(path, layout, cameras, flip_images, instruction)
        with opened(path) as file:
            data = group(file, "data", path.name)
            text = libero_instruction(data) if instruction is None else instruction
            table = InstructionTable([text])
            parts = [
                read_demo(data, name, state_keys, dict(cameras or {}))
                for name in masked_demos(file, demo_names(data), filter_key)
            ]
            declared = declared_metadata(path, data, state_keys, cameras)
        frames = TensorDict.cat([part for part, _ in parts])
        frames = choose_episodes("Hdf5Demonstrations", frames, exclude=exclude_episodes)
        frames.set(INSTRUCTION_KEY, table.ids.expand(len(frames)).clone())
        shapes = {shape for _, shape in parts}
        if len(shapes) > 1:
            raise SchemaError(
                "Hdf5Demonstrations: expected images of one size per camera in "
                f"{path.name!r}, got {sorted(shapes)}."
            )
        images = None
        if cameras and flip_images is not None:
            images = Hdf5Images(path, dict(cameras), flip_images)
        return cls(
            frames,
            with_statistics(declared if metadata is None else metadata, frames),
            table,
            images,
        )

    def observations(self, history_size: int = 1) -> Transform | None:
        """Make the transform that reads the images of sampled frames.

        Raises:
            SchemaError: ``history_size`` is above 1 and there are images, which are
                not in the frames.
        """
        if self.images is None:
            return super().observations(history_size)
        if history_size > 1:
            raise SchemaError(
                "Hdf5Demonstrations: expected history_size=1 with cameras, got "
                f"{history_size}. Write the images to a folder first: to_folder(...)."
            )
        return ReadHdf5Images(self.images)

    def select_episodes(self, episodes: Tensor) -> Hdf5Demonstrations:
        """Return the dataset of some episodes, with the same metadata."""
        part = super().select_episodes(episodes)
        return Hdf5Demonstrations(
            part.frames, part.metadata, part.instructions, self.images
        )

    def to_folder(self, folder: Path | str, *, overwrite: bool = False) -> Path:
        """Write a ``DemonstrationDataset``, with all images read into memory."""
        frames = self.replay_buffer(1)[:]
        whole = DemonstrationDataset(frames, self.metadata, self.instructions)
        return whole.to_folder(folder, overwrite=overwrite)


def _check_arguments(
    path: Path,
    layout: str,
    cameras: Mapping[str, str] | None,
    flip_images: str | None,
    instruction: str | None,
) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"Hdf5Demonstrations: expected a file at {str(path)!r}, got nothing."
        )
    if layout not in ("robomimic", "libero"):
        raise ValueError(
            "Hdf5Demonstrations: expected layout 'robomimic' or 'libero', got "
            f"{layout!r}. Pass layout=... (--layout)."
        )
    if (layout == "robomimic") == (instruction is None):
        raise ValueError(
            "Hdf5Demonstrations: expected an instruction for layout "
            "'robomimic', whose files have none, and none for 'libero', whose files "
            f"have one, got {instruction!r} for {layout!r}. Pass instruction=... "
            "(--instruction)."
        )
    if (cameras or flip_images is not None) and flip_images not in FLIPS:
        raise ValueError(
            f"Hdf5Demonstrations: expected flip_images of {list(FLIPS)}"
            f" for the cameras {list(cameras or {})}, got {flip_images!r}. LIBERO's "
            "images are upside down and robomimic's are not; see from_file. Look at "
            "an image, and pass flip_images=... (--flip-images)."
        )
