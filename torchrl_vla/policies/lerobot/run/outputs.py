"""What a policy's answer must be before it leaves."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torchrl_vla.schema import SchemaError


def check_chunk(chunk: Any, expected: tuple[int, int, int], name: str) -> Tensor:
    """Return a chunk ``[N, H, A]``, or refuse what the policy returned.

    Args:
        chunk: what it returned.
        expected: ``(N, H, A)``.
        name: of the policy, for the error.

    Raises:
        SchemaError: it is no float tensor of that shape.
    """
    if not isinstance(chunk, Tensor):
        got = type(chunk).__name__
    elif chunk.shape != expected or not chunk.is_floating_point():
        got = f"{chunk.dtype} {list(chunk.shape)}"
    else:
        return chunk
    raise SchemaError(
        "LeRobotPolicyWrapper: expected a float chunk [B, H, A] = "
        f"{list(expected)} from {name}, got {got}. Pass predict_fn=lambda policy, "
        "batch: ... to call it another way, or build the wrapper with its "
        "chunk_size and action_dim."
    )
