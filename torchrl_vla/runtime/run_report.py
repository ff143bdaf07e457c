"""Report of a run on a robot: rate, latencies, interventions, recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torchrl_vla._internal.charts import line_chart
from torchrl_vla._internal.durable_files import write_json, write_text
from torchrl_vla._internal.html_page import fact_table, html_page, row_table
from torchrl_vla.runtime.recording.background_recorder import BackgroundRecorder
from torchrl_vla.runtime.strategies.robot_run import RobotRun

#: Points of a chart, so that a page of an hour is not larger than one of a minute.
_POINTS = 600


class RunReport:
    """Sum up a run that is over.

    Args:
        run: that is over.
        recorder: of its dataset; None = it recorded nothing.
        error: that ended it; None = none did.

    Examples:
        >>> from torchrl_vla.runtime import *
        >>> from torchrl_vla.testing import FakeClock, FakeRobot, SlowPolicy
        >>> import torch
        >>> clock = FakeClock()
        >>> loop = ControlLoop(30.0, duration_s=1.0, clock=clock)
        >>> gate = SafetyGate(FakeRobot(clock=clock), clock=clock)
        >>> env = RobotEnv(gate, task="wave", loop=loop)
        >>> jump = SlowPolicy(lambda call: torch.full((2,), 7.0 * (call > 3)))
        >>> run = RobotRun(env, jump)
        >>> run_strategy(PlainRollout(), run)
        >>> print(RunReport(run))
        fake_robot: ended by duration
        31 ticks in 1.00 s: 30.00 Hz of 30 Hz, 0 late
        ...
        interventions of the gate: limits held: 26
    """

    def __init__(
        self,
        run: RobotRun,
        recorder: BackgroundRecorder | None = None,
        error: BaseException | None = None,
    ) -> None:
        env = run.robot_env
        self.robot = env.metadata.dataset_id
        self.statistics, self.log = env.loop.statistics, env.gate.log
        self.recorder = recorder
        ended_by = env.loop.ended_by or "the strategy"
        self.ended_by = ended_by if error is None else type(error).__name__

    def to_dict(self) -> dict[str, object]:
        """Return everything as JSON-native values."""
        recorder = self.recorder
        return {
            "robot": self.robot,
            "ended_by": self.ended_by,
            "loop": self.statistics.to_dict(),
            "interventions": self._counts(),
            "last_interventions": self.log.to_dicts(),
            "recording": None
            if recorder is None
            else {
                "episodes": recorder.num_episodes,
                "frames": recorder.added,
                "dropped": recorder.dropped,
            },
        }

    def write_json(self, path: Path) -> None:
        """Write :meth:`to_dict` to a file."""
        write_json(path, self.to_dict())

    def write_html(self, path: Path) -> None:
        """Write a page that needs no other file."""
        facts = {"robot": self.robot, "ended by": self.ended_by}
        if self.recorder is not None:
            facts["recording"] = repr(self.recorder)
        found = self.statistics
        spreads = {"period": found.period, "jitter": found.jitter, "work": found.work}
        rows: list[Mapping[str, object]] = [
            {"ms": name, **vars(spread)} for name, spread in spreads.items()
        ]
        sections = [
            f"<h1>Run on {self.robot}</h1><section>{fact_table(facts)}</section>",
            f"<section><h2>Rate</h2><p>{found.rate_hz:.2f} Hz of {found.wanted_hz:g} "
            f"Hz, {found.late} of {found.ticks} ticks late</p>{row_table(rows)}"
            + _chart("period in ms", found.periods_s)
            + _chart("work in ms", found.works_s)
            + "</section>",
            f"<section><h2>Interventions of the gate</h2>{self._table()}</section>",
        ]
        write_text(path, html_page(f"Run on {self.robot}", sections))

    def _table(self) -> str:
        counts = self._counts()
        return row_table(counts) if counts else "<p>None.</p>"

    def _counts(self) -> list[dict[str, object]]:
        return [
            {"reason": reason, "reaction": reaction, "count": count}
            for (reason, reaction), count in sorted(self.log.counts.items())
        ]

    def __str__(self) -> str:
        found = ", ".join(
            f"{row['reason']} {row['reaction']}: {row['count']}"
            for row in self._counts()
        )
        lines = [
            f"{self.robot}: ended by {self.ended_by}",
            str(self.statistics),
            f"interventions of the gate: {found or 'none'}",
        ]
        if self.recorder is not None:
            lines.append(repr(self.recorder))
        return "\n".join(lines)


def _chart(label: str, seconds: Sequence[float]) -> str:
    """Draw durations over the ticks, the largest of each stretch."""
    values = [1000 * value for value in seconds]
    if len(values) < 2:
        return ""
    width = -(-len(values) // _POINTS)
    points = [
        (float(start), max(values[start : start + width]))
        for start in range(0, len(values), width)
    ]
    if len(points) < 2:
        return ""
    top = max(y for _, y in points)
    return line_chart(
        points, x_label="tick", y_label=label, y_range=(0.0, 1.1 * top + 1e-3)
    )
