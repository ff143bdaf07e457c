"""Demonstrations by folder, repo id or ``module:function``."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from tensordict import is_tensor_collection

from torchrl_vla._internal.named_objects import import_named, is_named_object
from torchrl_vla.data import (
    DemonstrationDataset,
    Demonstrations,
    LeRobotDemonstrations,
)
from torchrl_vla.schema import IMAGE_KEY, RobotDatasetMetadata, with_image_sizes
from torchrl_vla.schema.lerobot_names import is_repo_id


def open_dataset(source: Path | str) -> Demonstrations:
    """Open demonstrations: a folder of ours or of LeRobot's, one of the Hub, or a call.

    Args:
        source: a folder that ``torchrl-vla collect`` or LeRobot wrote; a repo id of
            the Hugging Face Hub, ``"user/name"`` (a folder of that name wins); or
            ``"module:function"``, which returns demonstrations.

    Raises:
        FileNotFoundError: there is no such folder or repo.
        MissingExtraError: it is LeRobot's, and the extra ``datasets`` is not installed.
        SchemaError: the recording was not finished, or is none.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir() and is_named_object(str(source)):
        return cast(Demonstrations, import_named("open_dataset", str(source))())
    if (folder / "meta").is_dir():
        return LeRobotDemonstrations.from_folder(folder)
    if not folder.is_dir() and is_repo_id(source):
        return LeRobotDemonstrations.from_hub(str(source))
    return DemonstrationDataset.from_folder(folder)


def image_sizes_of(dataset: Demonstrations) -> dict[str | None, tuple[int, int, int]]:
    """Return ``(C, h, w)`` of each camera; None is one image without a name."""
    images = dataset.replay_buffer(1, seed=0).sample().get(IMAGE_KEY, None)
    if images is None:
        return {}
    if not is_tensor_collection(images):
        return {None: tuple(images.shape[-3:])}
    return {name: tuple(images[name].shape[-3:]) for name in sorted(images.keys())}


def seen_metadata(dataset: Demonstrations) -> RobotDatasetMetadata:
    """Return a dataset's metadata with the image sizes that a policy sees of it."""
    if dataset.metadata.image_sizes is not None:
        return dataset.metadata
    return with_image_sizes(dataset.metadata, image_sizes_of(dataset))
