"""Regression gate: a verdict per task about a new policy and the one before it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from torchrl_vla.evaluation.comparison_checks import (
    ComparisonError,
    check_same_setting,
)
from torchrl_vla.evaluation.result import EpisodeRecord, EvaluationResult
from torchrl_vla.evaluation.tables import (
    OutcomeTable,
    PairedTable,
    SequentialTable,
    UnpairedTable,
)

Verdict = Literal["improved", "held", "regressed", "underpowered"]

#: The row of all tasks together.
ALL = "(all)"


@dataclass(frozen=True)
class TaskVerdict:
    """What the episodes of one task show.

    Args:
        verdict: ``"improved"``, ``"held"``, ``"regressed"`` or ``"underpowered"``.
        difference: success rate of the candidate minus that of the baseline.
        interval: of the difference, for this task alone.
        p_value: of both being equally good, adjusted for the number of tasks.
        is_paired: True = both ran the same episodes.
        episodes: of the candidate.
    """

    verdict: Verdict
    difference: float
    interval: tuple[float, float]
    p_value: float
    is_paired: bool
    episodes: int


@dataclass(frozen=True)
class RegressionGate:
    """A verdict per task, made by :func:`regression_gate`.

    Args:
        tasks: by instruction; with several tasks also of :data:`ALL`.
        margin: loss of success rate that counts as none.
        confidence: of intervals and tests.
        names: of candidate and baseline.
    """

    tasks: Mapping[str, TaskVerdict]
    margin: float
    confidence: float
    names: tuple[str, str]

    def having(self, verdict: Verdict) -> list[str]:
        """Return the tasks with a verdict."""
        return [task for task, about in self.tasks.items() if about.verdict == verdict]

    def passes(self, *, with_underpowered: bool = True) -> bool:
        """Return whether no task regressed.

        Args:
            with_underpowered: False = tasks with too few episodes fail it as well.
        """
        fails = self.having("regressed")
        return not (fails if with_underpowered else fails + self.having("underpowered"))

    def to_json(self) -> str:
        """Return the verdicts as JSON."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        candidate, baseline = self.names
        lines = [
            f"{candidate} against {baseline}, margin {100 * self.margin:g} points",
            f"{'verdict':>12}  {'difference':>10}  "
            f"{f'{100 * self.confidence:g} % interval':>15}  {'Holm p':>8}  "
            f"{'episodes':>8}  task",
        ]
        for task, about in self.tasks.items():
            low, high = (100 * end for end in about.interval)
            pairs = "" if about.is_paired else "  (other episodes)"
            p_value = "< 0.0001" if about.p_value < 1e-4 else f"{about.p_value:.2g}"
            lines.append(
                f"{about.verdict:>12}  {100 * about.difference:>+10.1f}  "
                f"{f'{low:.1f} to {high:.1f}':>15}  {p_value:>8}  "
                f"{about.episodes:>8}  {task}{pairs}"
            )
        counts = [
            f"{len(tasks)} {name}"
            for name in ("improved", "held", "regressed", "underpowered")
            if (tasks := [t for t in self.having(name) if t != ALL])  # type: ignore[arg-type]
        ]
        return "\n".join([*lines, f"tasks: {', '.join(counts)}"])


def regression_gate(
    candidate: EvaluationResult,
    baseline: EvaluationResult,
    *,
    margin: float = 0.1,
    confidence: float = 0.95,
    names: tuple[str, str] = ("candidate", "baseline"),
) -> RegressionGate:
    """Say per task whether a new policy improved, held or regressed.

    In this order, a task is

    - *improved*, or a candidate for *regressed*, where the exact test rejects equal
      policies at ``1 - confidence`` after Holm's correction for all rows of the table;
    - *held* where the whole interval of the difference lies above ``-margin``: the new
      policy is not worse by more than the margin (a test of non-inferiority), even if a
      loss within the margin is proven;
    - *regressed* where a loss is proven that may exceed the margin;
    - *underpowered* otherwise: neither is shown, and more episodes are needed.

    Where a task's episodes are the same in both, by seed, they are paired: McNemar's
    exact test and Newcombe's paired interval; else Fisher's exact test and Newcombe's
    interval of independent rates. That a policy held in *every* task needs no
    correction: all tests have to agree.

    Args:
        candidate: the new policy's evaluation; differences are its rate minus the
            other's.
        baseline: that of the policy before.
        margin: loss of success rate that counts as none, in (0, 1).
        confidence: of intervals and tests.
        names: of the two, in the table.

    Raises:
        ComparisonError: the environments, modes or tasks differ, or margin or
            confidence are out of range.

    Examples:
        >>> def result(successes, episodes=50):
        ...     return EvaluationResult(
        ...         [
        ...             EpisodeRecord(i, "push", i < successes, 0.0, 9)
        ...             for i in range(episodes)
        ...         ]
        ...     )
        >>> regression_gate(result(40), result(50)).tasks["push"].verdict
        'regressed'
        >>> regression_gate(result(50), result(50)).tasks["push"].verdict
        'held'
        >>> regression_gate(result(9, 10), result(10, 10)).tasks["push"].verdict
        'underpowered'

    Source: S. Holm, Scand. J. Stat. 6:65 (1979); R. L. Berger, Technometrics 24:295
    (1982), for all tests having to agree; R. G. Newcombe, Stat. Med. 17:873 and
    17:2635 (1998).
    """
    for name, value in (("margin", margin), ("confidence", confidence)):
        if not 0.0 < value < 1.0:
            raise ComparisonError(
                f"regression_gate: expected {name} in (0, 1), got {value}. 0.05 is "
                "five percent."
            )
    check_same_setting(candidate, baseline, names)
    ours, theirs = candidate.by_instruction(), baseline.by_instruction()
    lonely = sorted(ours.keys() ^ theirs.keys())
    if lonely:
        raise ComparisonError(
            f"regression_gate: expected the same tasks in {names[0]} and {names[1]}, "
            f"got {len(lonely)} in one of them alone, such as {lonely[0]!r}. Evaluate "
            "both on the same tasks."
        )
    rows = {task: _table(ours[task], theirs[task]) for task in ours}
    if len(rows) > 1:
        rows[ALL] = _table(candidate, baseline)
    adjusted = holm([table.p_value for table in rows.values()])
    counts = {ALL: len(candidate)} | {task: len(part) for task, part in ours.items()}
    return RegressionGate(
        {
            task: _judge(table, p_value, margin, confidence, counts[task])
            for (task, table), p_value in zip(rows.items(), adjusted, strict=True)
        },
        margin,
        confidence,
        names,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number, in the same order.

    Those below ``alpha`` are rejections of which any is wrong with probability at most
    ``alpha``, however the tests depend on each other.

    Examples:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

    Source: S. Holm, Scand. J. Stat. 6:65 (1979).
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def _table(ours: EvaluationResult, theirs: EvaluationResult) -> OutcomeTable:
    a, b = _by_episode(ours), _by_episode(theirs)
    is_paired = a.keys() == b.keys()
    if len(a) != len(ours) or len(b) != len(theirs) or not is_paired:
        return UnpairedTable.from_episodes(ours.episodes, theirs.episodes)
    kind = PairedTable
    if ours.stopped_early or theirs.stopped_early:
        kind = SequentialTable
    return kind.from_episodes(list(a.values()), [b[key] for key in a])


def _by_episode(result: EvaluationResult) -> dict[tuple[int, str], EpisodeRecord]:
    # Seeds of other purposes or runs are other numbers.
    return {(e.seed, e.instruction): e for e in result.episodes}


def _judge(
    table: OutcomeTable,
    p_value: float,
    margin: float,
    confidence: float,
    episodes: int,
) -> TaskVerdict:
    low, high = table.interval(confidence)
    is_shown = p_value <= 1 - confidence
    verdict: Verdict = "underpowered"
    if is_shown and table.difference > 0:
        verdict = "improved"
    elif low > -margin:
        verdict = "held"
    elif is_shown:
        verdict = "regressed"
    return TaskVerdict(
        verdict, table.difference, (low, high), p_value, table.is_paired, episodes
    )
