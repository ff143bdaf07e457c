"""Choice of cameras, names and tolerances with which a LeRobot dataset is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tensordict import NestedKey, unravel_key

from torchrl_vla.data.lerobot.lerobot_feature import INDEX_FEATURES, OWNER, Feature
from torchrl_vla.schema import SchemaError, to_canonical

#: LeRobot's tolerance of a timestamp.
TOLERANCE_S = 1e-4


@dataclass(frozen=True)
class Selection:
    """Which features of a dataset are read, under which names, and how strictly.

    Args:
        cameras: by the last part of their names, or by their whole names; None = all.
        rename: the dataset's names of features to LeRobot's usual ones. Several vectors
            with one new name are concatenated in this order.
        tolerance_s: largest distance of a timestamp from ``frame_index / fps``, and of
            a video frame from its row, in seconds.
        empty_task: text of tasks that are empty; None = refuse them.
    """

    cameras: tuple[str, ...] | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    tolerance_s: float = TOLERANCE_S
    empty_task: str | None = None

    def __post_init__(self) -> None:
        if not (self.tolerance_s >= 0 and math.isfinite(self.tolerance_s)):
            raise ValueError(
                f"{OWNER}: expected a finite tolerance_s >= 0, got {self.tolerance_s}. "
                f"LeRobot's is {TOLERANCE_S}."
            )
        if self.empty_task is not None and not self.empty_task.strip():
            raise ValueError(
                f"{OWNER}: expected a text with words at empty_task, got "
                f"{self.empty_task!r}. It becomes the instruction of those frames."
            )


#: Everything, under the dataset's own names.
EVERYTHING = Selection()


def select_features(
    features: Mapping[str, Feature], selection: Selection
) -> dict[str, Feature]:
    """Return the numbers, texts and chosen cameras, each with its key.

    Raises:
        ValueError: a camera or feature that is named does not exist.
        SchemaError: a chosen camera is a depth map, or keys overlap.
    """
    cameras = _choose_cameras(features, selection.cameras)
    kept = {
        name: feature
        for name, feature in features.items()
        if name in cameras or not feature.is_image
    }
    _check_rename(features, selection.rename)
    kept = {
        name: feature._replace(key=to_canonical(selection.rename.get(name, name)))
        for name, feature in kept.items()
    }
    for name in cameras:
        if _path(kept[name].key)[0] != "observation":
            raise SchemaError(
                f"{OWNER}: expected cameras below 'observation.', got {name!r}. Pass "
                f"rename={{{name!r}: 'observation.images.{_last(name)}'}} (--rename), "
                f"or other cameras (--cameras)."
            )
    kept = _concatenate(kept, selection.rename)
    _check_keys(kept)
    return kept


def _choose_cameras(
    features: Mapping[str, Feature], chosen: Sequence[str] | None
) -> list[str]:
    images = {name: feature for name, feature in features.items() if feature.is_image}
    known: dict[str, list[str]] = {name: [name] for name in images}
    for name in images:
        if _last(name) != name:
            known.setdefault(_last(name), []).append(name)
    if chosen is None:
        names = list(images)
    else:
        unknown = sorted(name for name in chosen if len(known.get(name, ())) != 1)
        if unknown:
            raise ValueError(
                f"{OWNER}: expected cameras of {sorted(map(_last, images))}, got "
                f"{unknown}. Two of one name are chosen by their whole names: "
                f"{sorted(images)}."
            )
        names = [known[name][0] for name in chosen]
    usable = [_last(name) for name in images if images[name].is_rgb]
    for name in names:
        if not images[name].is_rgb:
            what = "a depth map" if images[name].is_depth else images[name].shape
            raise SchemaError(
                f"{OWNER}: expected RGB cameras of a shape of three, got {what} at "
                f"camera {name!r}. Leave it out with cameras={usable} (--cameras "
                f"{' '.join(usable)})."
            )
    return names


def _check_rename(features: Mapping[str, Feature], rename: Mapping[str, str]) -> None:
    unknown = sorted(set(rename) - set(features))
    if unknown:
        raise ValueError(
            f"{OWNER}: expected rename of features of {sorted(features)}, got "
            f"{unknown}. Pass the dataset's name first: rename={{old: new}} "
            "(--rename OLD NEW)."
        )
    fixed = sorted({*rename, *rename.values()} & {*INDEX_FEATURES, "task"})
    if fixed:
        raise ValueError(
            f"{OWNER}: expected rename of cameras and vectors, got {fixed}, which "
            "number the frames. Leave them out of rename (--rename)."
        )


def _concatenate(
    features: dict[str, Feature], rename: Mapping[str, str]
) -> dict[str, Feature]:
    """Give the features that are renamed to one key their columns of it."""
    groups: dict[str, list[str]] = {}
    for name in rename:
        if name in features:
            groups.setdefault(rename[name], []).append(name)
    for key, names in groups.items():
        if len(names) == 1:
            continue
        wrong = [name for name in names if not features[name].is_vector]
        if wrong:
            raise SchemaError(
                f"{OWNER}: expected vectors of numbers to concatenate to {key!r}, got "
                f"{ {name: features[name].shape for name in wrong} }. Give each its "
                "own name in rename (--rename)."
            )
        first = 0
        for name in names:
            end = first + features[name].shape[0]
            features[name] = features[name]._replace(columns=(first, end))
            first = end
    return features


def _check_keys(features: Mapping[str, Feature]) -> None:
    """Refuse two features of one key, and a key below another's."""
    leaves: dict[tuple[str, ...], str] = {}
    groups: dict[tuple[str, ...], str] = {}
    for name, feature in features.items():
        path = _path(feature.key)
        above = [path[:depth] for depth in range(1, len(path))]
        for other in (*(leaves.get(part) for part in (*above, path)), groups.get(path)):
            if other is None or (
                feature.columns and features[other].key == feature.key
            ):
                continue  # parts of one vector
            raise SchemaError(
                f"{OWNER}: expected features with different keys, got {name!r} and "
                f"{other!r}, whose keys overlap. Rename one of them with rename={{"
                f"{name!r}: ...}} (--rename {name} NEW); name both to concatenate them."
            )
        leaves[path] = name
        groups.update(dict.fromkeys(above, name))


def _path(key: NestedKey) -> tuple[str, ...]:
    return unravel_key(("", key))[1:]


def _last(name: str) -> str:
    """Return the camera's name in ``observation.images.<name>``."""
    *groups, last = _path(to_canonical(name))
    return last if groups else name.rpartition(".")[2]
