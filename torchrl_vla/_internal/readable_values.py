"""Readability of the values of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor


def can_be_read(values: Tensor) -> bool:
    """Return whether values can be read now; a check asserts on the device if not.

    On a GPU a read waits for the device. A device-side assertion does not wait, but it
    says little and ends the process's use of the GPU, so it is for where nothing can
    be read: while values are traced, or captured into a CUDA graph.

    Examples:
        >>> can_be_read(torch.ones(2))
        True
    """
    if torch.compiler.is_compiling():
        return False
    is_cuda = values.device.type == "cuda"
    return not (is_cuda and torch.cuda.is_current_stream_capturing())
