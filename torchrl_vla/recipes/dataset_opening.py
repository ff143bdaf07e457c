"""Demonstrations by folder, repo id or ``module:function``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from tensordict import is_tensor_collection

from torchrl_vla._internal.named_objects import import_named, is_named_object
from torchrl_vla.data import (
    DemonstrationDataset,
    Demonstrations,
    Hdf5Demonstrations,
    LeRobotDemonstrations,
    convert_demonstrations,
)
from torchrl_vla.errors import SettingsError
from torchrl_vla.recipes.dataset_options import NO_DATASET_OPTIONS, DatasetOptions
from torchrl_vla.schema import (
    ACTION_KEY,
    IMAGE_KEY,
    RobotDatasetMetadata,
    SchemaError,
    with_image_sizes,
)
from torchrl_vla.schema.lerobot_names import is_repo_id

_LEROBOT = (
    "cameras",
    "rename",
    "exclude_episodes",
    "statistics",
    "tolerance_s",
    "empty_task",
)
_HDF5 = (
    "cameras",
    "rename",
    "exclude_episodes",
    "layout",
    "state_keys",
    "flip_images",
    "instruction",
    "filter_key",
)


def open_dataset(
    source: Path | str, options: DatasetOptions = NO_DATASET_OPTIONS
) -> Demonstrations:
    """Open demonstrations: of ours, LeRobot's, robomimic's, on the Hub, or a call.

    Args:
        source: a folder that ``torchrl-vla collect`` or LeRobot wrote; an HDF5 file; a
            repo id of the Hugging Face Hub, ``"user/name"`` (a folder of that name
            wins); or ``"module:function"``, which returns demonstrations.
        options: for the reader.

    Raises:
        FileNotFoundError: there is no such folder, file or repo.
        MissingExtraError: the extra ``datasets`` is needed and not installed.
        SchemaError: the recording was not finished, or is none.
        SettingsError: an option does not apply to datasets of this kind.
    """
    given = dict(options.given())
    target = given.pop("convert_to", None)
    dataset = _open(source, given)
    if target is None:
        return dataset
    return convert_demonstrations(dataset, metadata_in(target))


def metadata_in(source: Path | str) -> RobotDatasetMetadata:
    """Return the metadata of a dataset or checkpoint."""
    folder = Path(source).expanduser()
    for stored in (folder / "metadata.json", folder / "pretrained_model/metadata.json"):
        if stored.is_file():
            return RobotDatasetMetadata.from_json(stored)
    return open_dataset(folder).metadata


def _open(source: Path | str, given: dict[str, Any]) -> Demonstrations:
    path = Path(source).expanduser()
    if not path.exists() and is_named_object(str(source)):
        _check_options(given, (), "a function, which opens its dataset itself")
        return cast(Demonstrations, import_named("open_dataset", str(source))())
    if (path / "meta").is_dir():
        _check_options(given, _LEROBOT, "a LeRobot folder")
        return _with_action(LeRobotDemonstrations.from_folder(path, **given))
    if not path.exists() and is_repo_id(source):
        _check_options(given, (*_LEROBOT, "revision"), "a LeRobot dataset of the Hub")
        return _with_action(LeRobotDemonstrations.from_hub(str(source), **given))
    if path.is_file():
        _check_options(given, _HDF5, "an HDF5 file")
        names = given.pop("rename", {})
        given["cameras"] = {names.get(x, x): x for x in given.get("cameras", ())}
        required = {"layout": None, "state_keys": ()}
        return Hdf5Demonstrations.from_file(path, **(required | given))
    _check_options(given, ("exclude_episodes",), "a folder of `torchrl-vla collect`")
    return DemonstrationDataset.from_folder(path, **given)


def _with_action(dataset: Demonstrations) -> Demonstrations:
    """Refuse a dataset whose actions have another name."""
    if ACTION_KEY not in dataset.frames:
        raise SchemaError(
            f"open_dataset: expected 'action' in {dataset.metadata.dataset_id!r}, got "
            f"{sorted(map(str, dataset.frames.keys(True, True)))}. Name the feature "
            "that is the action: rename={'...': 'action'} (--rename NAME action)."
        )
    return dataset


def _check_options(
    given: Mapping[str, object], known: Sequence[str], kind: str
) -> None:
    """Refuse options without an effect on this kind of dataset."""
    foreign = sorted(set(given) - set(known))
    if foreign:
        flags = ", ".join("--" + name.replace("_", "-") for name in foreign)
        raise SettingsError(
            f"open_dataset: expected options of {kind}, got {foreign} ({flags}), which "
            f"have no effect on it. It takes {list(known) or 'none'}."
        )


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
