"""Files of the text features that were computed before."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from torchrl_vla._internal.durable_files import write_bytes
from torchrl_vla._internal.tensor_file import read_tensors

_REMEDY = "Delete the file: it is written again."


def default_text_cache() -> Path:
    """Return the folder for features of texts in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "torchrl_vla" / "text_features"


def read_features(key: str) -> dict[str, Tensor]:
    """Return the features of texts that were written under a key.

    Args:
        key: everything that the features depend on, beside the text.
    """
    path = _path(key)
    if not path.is_file():
        return {}
    found = read_tensors("text features", path, dict[str, object], remedy=_REMEDY)
    return cast("dict[str, Tensor]", found)


def write_features(key: str, features: Mapping[str, Tensor]) -> None:
    """Add features to what is written under a key."""
    path = _path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    features = {**read_features(key), **features}
    write_bytes(path, lambda file: torch.save(features, file))


def _path(key: str) -> Path:
    name = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    return default_text_cache() / f"{name}.pt"
