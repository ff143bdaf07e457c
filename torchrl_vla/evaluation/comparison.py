"""Comparison of two policies' evaluations: difference, interval and test."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from torchrl_vla._internal.json_source import read_json
from torchrl_vla.evaluation.comparison_checks import (
    ComparisonError,
    check_same_episodes,
    check_same_setting,
    remark_differences,
)
from torchrl_vla.evaluation.result import (
    EpisodeRecord,
    EvaluationResult,
    StoredResult,
    restore_result,
)
from torchrl_vla.evaluation.tables import (
    OutcomeTable,
    PairedTable,
    SequentialTable,
    UnpairedTable,
)


class _StoredComparison(TypedDict):
    """What :meth:`Comparison.to_json` writes, without the summary."""

    names: tuple[str, str]
    confidence: float
    unpaired: bool
    a: StoredResult
    b: StoredResult


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same task and their difference, made by :func:`compare`.

    Args:
        a: the first evaluation.
        b: the second, its episodes in the order of the first's if they are pairs.
        table: the outcomes of all episodes, counted.
        names: of the two, in tables and sentences.
        confidence: of the intervals.
    """

    a: EvaluationResult
    b: EvaluationResult
    table: OutcomeTable
    names: tuple[str, str] = ("a", "b")
    confidence: float = 0.95

    @property
    def difference(self) -> float:
        """The first success rate minus the second, in ``[-1, 1]``."""
        return self.table.difference

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of :attr:`difference`."""
        return self.table.interval(self.confidence)

    @property
    def p_value(self) -> float:
        """Two-sided p-value of both policies being equally good."""
        return self.table.p_value

    @property
    def excludes_zero(self) -> bool:
        """True = zero is outside of the interval."""
        low, high = self.interval
        return low > 0 or high < 0

    @property
    def is_decided(self) -> bool:
        """True = interval and test agree that one of the two is better."""
        return self.excludes_zero and self.p_value <= 1 - self.confidence

    def by_instruction(self) -> dict[str, OutcomeTable]:
        """Return the table of each instruction that both were given.

        Each interval holds by itself; of twenty, one is expected to miss the truth.
        """
        parts_a, parts_b = self.a.by_instruction(), self.b.by_instruction()
        return {
            text: type(self.table).from_episodes(
                parts_a[text].episodes, parts_b[text].episodes
            )
            for text in parts_a
            if text in parts_b
        }

    @property
    def remarks(self) -> list[str]:
        """Sentences about what may make the comparison misleading; mostly none."""
        return remark_differences(
            self.a, self.b, self.names, is_paired=self.table.is_paired
        )

    @property
    def verdict(self) -> str:
        """One sentence: the better policy, the difference, interval and p-value."""
        low, high = (100 * end for end in self.interval)
        points, (better, other) = 100 * self.difference, self.names
        if points < 0:
            points, low, high = -points, -high, -low
            better, other = other, better
        zero = "without zero" if self.excludes_zero else "zero included"
        kind = "paired episodes" if self.table.is_paired else "episodes"
        count = str(len(self.a))
        if len(self.a) != len(self.b):
            count += f" and {len(self.b)}"
        sure = (
            f"({100 * self.confidence:g} % interval {low:.1f} to {high:.1f}, {zero}; "
            f"{self.table.test} p {_p_text(self.p_value)}; {count} {kind})"
        )
        if self.is_decided:
            return f"{better} is better than {other} by {points:.1f} points {sure}."
        lead = f"{better} is ahead by {points:.1f} points"
        if points == 0:
            lead = "they succeeded equally often"
        return f"No difference between {better} and {other} is shown: {lead} {sure}."

    def to_json(self) -> str:
        """Return both evaluations as JSON; the summary is for readers."""
        low, high = self.interval
        summary = {
            "verdict": self.verdict,
            "difference": self.difference,
            "interval": [low, high],
            "p_value": self.p_value,
            "test": self.table.test,
            "counts": self.table.counts,
            "remarks": self.remarks,
        }
        payload = {
            "summary": summary,
            "names": list(self.names),
            "confidence": self.confidence,
            "unpaired": not self.table.is_paired,
            "a": json.loads(self.a.to_json()),
            "b": json.loads(self.b.to_json()),
        }
        return json.dumps(payload, indent=2)

    @classmethod
    def from_json(cls, source: str | Path) -> Comparison:
        """Read a JSON text, or the file at a :class:`~pathlib.Path`.

        Raises:
            FileNotFoundError: there is no such file.
            ComparisonError: what it holds cannot be compared.
            SchemaError: it is no JSON, or not that of a comparison.
        """
        values = read_json("Comparison.from_json", source, _StoredComparison)
        a, b = map(restore_result, (values["a"], values["b"]))
        return compare(
            a,
            b,
            names=values["names"],
            unpaired=values["unpaired"],
            confidence=values["confidence"],
        )

    def __str__(self) -> str:
        lines = [
            f"{letter} ({name}): {str(result).splitlines()[0]}"
            for letter, name, result in zip(
                "ab", self.names, (self.a, self.b), strict=True
            )
        ]
        counts = [name.replace("_", " ") for name in self.table.counts]
        interval = f"{100 * self.confidence:g} % interval"
        lines.append(
            f"{'a':>8}  {'b':>8}  {'a - b':>6}  {interval:>15}  {'p':>8}  "
            + "".join(f"{name:>{_wide(name)}}  " for name in counts)
            + "instruction"
        )
        rows: Mapping[str, OutcomeTable] = {"(all)": self.table}
        parts = self.by_instruction()
        if len(parts) > 1:
            rows = {**rows, **parts}
        lines += [self._row(text, table) for text, table in rows.items()]
        lines += [f"note: {remark}" for remark in self.remarks]
        return "\n".join([*lines, self.verdict])

    def _row(self, text: str, table: OutcomeTable) -> str:
        low, high = (100 * end for end in table.interval(self.confidence))
        rate_a, rate_b = (100 * rate for rate in table.rates)
        interval = f"{low:.1f} to {high:.1f}"
        p_value = _p_text(table.p_value).removeprefix("= ")
        counts = "".join(
            f"{count:>{_wide(name)}}  " for name, count in table.counts.items()
        )
        return (
            f"{rate_a:>6.1f} %  {rate_b:>6.1f} %  {100 * table.difference:>+6.1f}  "
            f"{interval:>15}  {p_value:>8}  {counts}{text}"
        )


def compare(
    a: EvaluationResult,
    b: EvaluationResult,
    *,
    names: tuple[str, str] = ("a", "b"),
    unpaired: bool = False,
    confidence: float = 0.95,
) -> Comparison:
    """Compare two evaluations, episode by episode.

    Both must have run the same episodes: each of one is paired with that of the other
    with the same seed and instruction. The difficulty of an episode then cancels, and
    a few hundred show a difference that would take thousands otherwise. An evaluation
    that was stopped by its own outcomes gets an anytime-valid interval. A pair is left
    out where one of the two episodes ended in an error and is not counted.

    Args:
        a: the first evaluation; differences are its rate minus the second's.
        b: the second.
        names: of the two, in tables and sentences.
        unpaired: True = other episodes of the same environment, compared as
            independent. The interval is wider.
        confidence: of the intervals.

    Raises:
        ComparisonError: other seeds, purposes, instructions or environments; one
            policy's mode and another's samples; a seed that occurs twice.

    Examples:
        >>> from torchrl_vla.evaluation import EpisodeRecord
        >>> def result(*successes):
        ...     return EvaluationResult(
        ...         [EpisodeRecord(i, "", s, 0.0, 9) for i, s in enumerate(successes)]
        ...     )
        >>> a, b = result(*[True] * 10), result(*[True] * 2, *[False] * 8)
        >>> comparison = compare(a, b, names=("new", "old"))
        >>> print(comparison.table)
        PairedTable(both=2, only_a=8, only_b=0, neither=0)
        >>> comparison.verdict[:40]
        'new is better than old by 80.0 points (9'
    """
    if not 0 < confidence < 1:
        raise ComparisonError(
            f"compare: expected a confidence between 0 and 1, got {confidence}."
        )
    check_same_setting(a, b, names)
    a, b = _without(a, b.apart), _without(b, a.apart)
    kind: type[OutcomeTable] = UnpairedTable
    if not unpaired:
        check_same_episodes(a, b, names)
        b = _in_the_order_of(a, b)
        kind = SequentialTable if a.stopped_early or b.stopped_early else PairedTable
    table = kind.from_episodes(a.episodes, b.episodes)
    return Comparison(a, b, table, names, confidence)


def _without(
    result: EvaluationResult, apart: Sequence[EpisodeRecord]
) -> EvaluationResult:
    seeds = {episode.seed for episode in apart}
    return replace(result, episodes=[e for e in result.episodes if e.seed not in seeds])


def _in_the_order_of(a: EvaluationResult, b: EvaluationResult) -> EvaluationResult:
    by_seed = {episode.seed: episode for episode in b.episodes}
    return replace(b, episodes=[by_seed[episode.seed] for episode in a.episodes])


def _p_text(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"= {value:.2g}"


def _wide(name: str) -> int:
    return max(6, len(name))
