"""Counters of a server, and their text for Prometheus."""

from __future__ import annotations

import threading
from collections.abc import Mapping

#: Counter to its help text.
COUNTERS = {
    "requests": "Observations that arrived.",
    "answers": "Chunks that were sent.",
    "failures": "Requests that the policy refused or failed at.",
    "superseded": "Requests that a newer one of the same client replaced.",
    "rate_limited": "Requests beyond a client's rate.",
    "damaged_messages": "Messages that were none.",
    "sessions_opened": "Sessions that were granted.",
    "sessions_closed": "Sessions that ended.",
    "sessions_refused": "Sessions that were refused.",
    "policy_calls": "Calls of the policy.",
    "policy_rows": "Rows of those calls.",
    "policy_seconds": "Time in the policy, seconds.",
    "waiting_seconds": "Time that requests waited for the policy, seconds.",
}
_PREFIX = "torchrl_vla_serving"


class ServingMetrics:
    """Count what a server does. May be used from several threads.

    Examples:
        >>> metrics = ServingMetrics()
        >>> metrics.add("requests")
        >>> metrics.add("policy_seconds", 0.25)
        >>> metrics["requests"], metrics["policy_seconds"]
        (1.0, 0.25)
        >>> metrics.prometheus_text({"active_sessions": 2}).splitlines()[-1]
        'torchrl_vla_serving_active_sessions 2'
    """

    def __init__(self) -> None:
        self._values = dict.fromkeys(COUNTERS, 0.0)
        self._lock = threading.Lock()

    def add(self, name: str, amount: float = 1.0) -> None:
        """Increase a counter.

        Args:
            name: one of :data:`COUNTERS`.
            amount: that is added.
        """
        with self._lock:
            self._values[name] += amount

    def __getitem__(self, name: str) -> float:
        with self._lock:
            return self._values[name]

    def prometheus_text(self, gauges: Mapping[str, float]) -> str:
        """Return all values in Prometheus' text format.

        Args:
            gauges: present values by name.

        Source: prometheus.io, "Text-based format", version 0.0.4.
        """
        lines = []
        for name, text in COUNTERS.items():
            full = f"{_PREFIX}_{name}_total"
            lines += [f"# HELP {full} {text}", f"# TYPE {full} counter"]
            lines.append(f"{full} {self[name]:g}")
        for name, value in gauges.items():
            full = f"{_PREFIX}_{name}"
            lines += [f"# TYPE {full} gauge", f"{full} {value:g}"]
        return "\n".join(lines) + "\n"
