"""Check that a checkpoint's weights are all in the policy read from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from torchrl_vla.policies.lerobot.load.safetensors_file import TensorFile
from torchrl_vla.schema import SchemaError

_CALLER = "LeRobotPolicyWrapper.from_pretrained"
#: In XVLA's older layout, for writing text, which LeRobot leaves out.
_NEVER_USED = ".final_logits_bias"


def check_weights(weights: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Refuse weights of which a part was not read but kept its random initial value.

    LeRobot renames the weights of older layouts while it loads them, and its pi0 goes
    on with random ones when that fails. So values decide, not names.

    Args:
        weights: by name.
        path: of the file that they were read from.
        name: whose they are, for the error.

    Raises:
        SchemaError: a weight is not in the file, or one in the file is not used.
    """
    missing, spare = _compare(weights, TensorFile(_CALLER, path))
    if missing or spare:
        raise SchemaError(
            f"{_CALLER}: expected the weights of {name} in "
            f"{str(path)!r}, got none for {missing[:5]} ({len(missing)} in all), which "
            f"would stay random, and unknown ones {spare[:5]} ({len(spare)}). The "
            "checkpoint is of another version or configuration."
        )


def changed_weights(weights: Mapping[str, Tensor], path: Path) -> list[str]:
    """Return the names of those in a file that are others in an adapted policy.

    Args:
        weights: of the policy inside the adapter, by name.
        path: of the file that it was read from.
    """
    for inner in (".base_layer.", ".original_module."):
        weights = {name.replace(inner, "."): value for name, value in weights.items()}
    file = TensorFile(_CALLER, path)
    return sorted(
        name
        for name in file.shapes
        if name in weights and not _same(weights[name], file.read(name))
    )


def _compare(
    weights: Mapping[str, Tensor], file: TensorFile
) -> tuple[list[str], list[str]]:
    """Return the policy's weights without a source, and the file's without a use."""
    by_shape = defaultdict(list)
    for name, shape in file.shapes.items():
        by_shape[tuple(sorted(shape))].append(name)
    loaded: set[int] = set()  # tied weights are stored once
    used: set[str] = set()
    # A weight under its own name first: another of its values may be tied to it.
    known = set(file.shapes)
    for name in sorted(weights, key=lambda name: name not in known):
        value = weights[name]
        if not value.numel() or value.data_ptr() in loaded:
            used.add(name)
            continue
        others = by_shape[tuple(sorted(value.shape))]
        # Renaming mostly adds or drops a prefix; equal values are taken in turn.
        others = sorted(others, key=lambda o: (not name.endswith(o), o in used))
        for other in [name] if name in known else others:
            if _same(value, file.read(other)):
                loaded.add(value.data_ptr())
                used.add(other)
                break
    missing = [
        name
        for name, value in weights.items()
        if value.numel() and value.data_ptr() not in loaded
    ]
    spare = [name for name in known - used if not name.endswith(_NEVER_USED)]
    return missing, sorted(spare)


def _same(weight: Tensor, stored: Tensor) -> bool:
    weight, stored = weight.detach().cpu(), stored.to(weight.dtype)
    if weight.shape == stored.shape and torch.equal(weight, stored):
        return True
    return (
        stored.ndim == 2 and weight.shape == stored.T.shape and weight.equal(stored.T)
    )
