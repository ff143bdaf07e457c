"""Mapping between LeRobot's feature names and the canonical keys."""

from __future__ import annotations

import re
from pathlib import Path

from tensordict import NestedKey, unravel_key

from torchrl_vla.errors import SchemaError
from torchrl_vla.schema.keys import IMAGE_KEY, INSTRUCTION_KEY

#: What LeRobot has no field for (units, bounds, conventions), beside its own files.
DECLARED_FILE = "meta/torchrl_vla.json"

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_CAMERA_PREFIX = "observation.images."
_GROUPS = ("observation", "next")
_RENAMED = {"task": INSTRUCTION_KEY, "index": "dataset_index"}
_RENAMED_BACK = {key: name for name, key in _RENAMED.items()}


def to_canonical(name: str) -> NestedKey:
    """Return our key of a LeRobot feature.

    LeRobot's names are flat and ours are nested. Two are renamed: ``task``, which is
    the instruction, and ``index``, a name that TorchRL's replay buffers write to.

    Args:
        name: as in ``info.json``, e.g. ``"observation.images.front"``.

    Raises:
        SchemaError: it is a name of ours, whose LeRobot name is another.

    Examples:
        >>> to_canonical("observation.state")
        ('observation', 'state')
        >>> to_canonical("observation.images.front")
        ('observation', 'image', 'front')
        >>> to_canonical("next.reward"), to_canonical("index")
        (('next', 'reward'), 'dataset_index')
    """
    if name in _RENAMED:
        return _RENAMED[name]
    if name in _RENAMED_BACK:
        raise SchemaError(
            f"to_canonical: expected a LeRobot feature, got {name!r}, which is the "
            f"name of LeRobot's {_RENAMED_BACK[name]!r} here. Rename the feature."
        )
    if name.startswith(_CAMERA_PREFIX) and name != _CAMERA_PREFIX:
        return (*IMAGE_KEY, name[len(_CAMERA_PREFIX) :])
    group, _, rest = name.partition(".")
    return (group, rest) if group in _GROUPS and rest else name


def to_lerobot(key: NestedKey) -> str:
    """Return LeRobot's name of one of our keys; undoes :func:`to_canonical`.

    Raises:
        SchemaError: LeRobot has no name for it (it is nested deeper than LeRobot's
            names are, or it is TorchRL's own ``index``).

    Examples:
        >>> to_lerobot(("observation", "image", "front"))
        'observation.images.front'
        >>> to_lerobot("language_instruction"), to_lerobot("dataset_index")
        ('task', 'index')
    """
    key = unravel_key(key)
    if key in _RENAMED_BACK:
        return _RENAMED_BACK[key]
    path = (key,) if isinstance(key, str) else key
    if path[:-1] == IMAGE_KEY:
        return _CAMERA_PREFIX + path[-1]
    name = ".".join(path)
    if name in _RENAMED or to_canonical(name) != key:
        raise SchemaError(
            f"to_lerobot: expected a key that LeRobot has a name for, got {key!r}. "
            f"LeRobot's names are flat, or one step deep below {_GROUPS}, and "
            f"{list(_RENAMED)} mean something else there. Rename or drop the entry."
        )
    return name


def is_repo_id(source: Path | str) -> bool:
    """Tell whether a text can be a repo id, ``"user/name"``; a ``Path`` never is."""
    return isinstance(source, str) and _REPO_ID.fullmatch(source) is not None
