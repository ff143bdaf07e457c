"""Check that actions are finite numbers."""

from __future__ import annotations

from tensordict import NestedKey
from torch import Tensor

from torchrl_vla.schema import ExecutionError

_LISTED = 8


def check_finite(caller: str, key: NestedKey, chunk: Tensor) -> None:
    """Refuse a chunk with NaN or infinite numbers.

    One number is read back from the chunk's device; the rest only in an error.

    Args:
        caller: opens the error message.
        key: of the chunk, for the error message.
        chunk: ``[*B, H, A]``.

    Raises:
        ExecutionError: lists the first places of the others.

    Examples:
        >>> import torch
        >>> check_finite("Demo", "action_chunk", torch.tensor([[[0.0, torch.nan]]]))
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.ExecutionError: Demo: expected finite actions at \
'action_chunk', got nan at env index 0, step 0, dimension 1. Look at the policy's \
inputs and weights. No action was sent.
    """
    finite = chunk.isfinite()
    if finite.all():
        return
    places = (~finite).nonzero().tolist()
    found = [
        f"{chunk[tuple(place)].item()} at {describe_place(place)}"
        for place in places[:_LISTED]
    ]
    if len(places) > _LISTED:
        found.append(f"{len(places) - _LISTED} more")
    raise ExecutionError(
        f"{caller}: expected finite actions at {key!r}, got {'; '.join(found)}. Look "
        "at the policy's inputs and weights. No action was sent."
    )


def describe_place(place: list[int]) -> str:
    """Name an index of a chunk ``[*B, H, A]``.

    Examples:
        >>> describe_place([3, 0, 1])
        'env index 3, step 0, dimension 1'
    """
    *env, step, dim = place
    where = f"env index {', '.join(map(str, env))}, " if env else ""
    return f"{where}step {step}, dimension {dim}"
