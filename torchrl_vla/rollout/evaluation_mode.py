"""Context in which a policy is in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and each part back into its own after.

    Dropout is off and batch normalization neither reads nor changes the statistics of
    its batch while a policy is evaluated. A part that was in evaluation mode before,
    such as a frozen backbone, stays there.

    Examples:
        >>> policy = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
        >>> with evaluation_mode(policy):
        ...     policy.training
        False
        >>> policy[0].training, policy[1].training
        (True, False)
    """
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
