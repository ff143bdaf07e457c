"""Events of a provider, for a host's log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias


@dataclass(frozen=True)
class ProviderEvent:
    """Say what a provider has begun, or how it ended.

    Args:
        operation: ``"load"`` or ``"select_actions"``.
        phase: what became of it.
        duration_s: since the start; None = it starts.
        error: name of the error's class; None = there was none.
    """

    operation: Literal["load", "select_actions"]
    phase: Literal["start", "success", "failure"]
    duration_s: float | None = None
    error: str | None = None


#: Receives the events, in their order: ``list.append`` is one.
EventSink: TypeAlias = Callable[[ProviderEvent], Any]


@contextmanager
def reported(
    sink: EventSink | None, operation: Literal["load", "select_actions"]
) -> Iterator[None]:
    """Tell the sink that an operation starts, and how it ends."""
    tell: EventSink = (lambda event: None) if sink is None else sink
    started = time.perf_counter()
    tell(ProviderEvent(operation, "start"))
    try:
        yield
    except Exception as error:
        passed = time.perf_counter() - started
        tell(ProviderEvent(operation, "failure", passed, type(error).__name__))
        raise
    tell(ProviderEvent(operation, "success", time.perf_counter() - started))
