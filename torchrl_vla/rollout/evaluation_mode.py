"""Context in which a policy is in evaluation mode."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

#: Numbers of a buffer; above, it holds weights and not statistics.
_SMALL = 1 << 20


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and each part back into its own after.

    Dropout is off and batch normalization neither reads nor changes the statistics of
    its batch while a policy is evaluated. A part that was in evaluation mode before,
    such as a frozen backbone, stays there. Buffers that are part of the checkpoint get
    their values back, and a warning names those that the policy had changed.

    Examples:
        >>> policy = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
        >>> with evaluation_mode(policy):
        ...     policy.training
        False
        >>> policy[0].training, policy[1].training
        (True, False)
    """
    training = [part for part in module.modules() if part.training]
    before = {name: value.clone() for name, value in _small_buffers(module)}
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
        _restore(module, before)


def _small_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the buffers of a checkpoint, except weights that are stored as buffers."""
    for prefix, part in module.named_modules():
        for name, value in part.named_buffers(prefix, recurse=False):
            short = name.rpartition(".")[2]
            is_stored = short not in part._non_persistent_buffers_set
            if is_stored and value.numel() <= _SMALL and value.device.type != "meta":
                yield name, value


def _restore(module: nn.Module, before: dict[str, Tensor]) -> None:
    changed = []
    for name, value in _small_buffers(module):
        known = before.get(name, value)
        if known is value or torch.equal(known, value):
            continue
        changed.append(name)
        owner, _, short = name.rpartition(".")
        with torch.no_grad():
            if known.shape == value.shape:
                value.copy_(known)
            else:
                setattr(module.get_submodule(owner), short, known)
    if changed:
        warnings.warn(
            f"{type(module).__name__}: expected a policy in evaluation mode to leave "
            f"its buffers as they are, got changes of {changed}. They have their old "
            "values again. Update them only where self.training is True, or register "
            "a cache with persistent=False.",
            stacklevel=4,
        )
