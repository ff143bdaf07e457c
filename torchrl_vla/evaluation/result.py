"""Result of an evaluation, episode by episode."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypedDict

from torchrl_vla._internal.json_source import read_json
from torchrl_vla.evaluation.confidence_sequence import rate_confidence_sequence
from torchrl_vla.evaluation.success_statistics import wilson_interval
from torchrl_vla.schema import SchemaError

#: Entry of the provenance of an evaluation that its own outcomes stopped.
STOPPING = "stopping"


@dataclass(frozen=True)
class EpisodeRecord:
    """One episode of an evaluation.

    Args:
        seed: made its initial state.
        instruction: text of the task.
        success: True = the task was achieved at some step.
        episode_return: sum of the rewards.
        length: steps.
        solved_at_reset: True = the task was achieved before any action.
        error: with which it ended instead of an outcome; None = it was finished.
    """

    seed: int
    instruction: str
    success: bool
    episode_return: float
    length: int
    solved_at_reset: bool = False
    error: str | None = None


class StoredResult(TypedDict):
    """What :meth:`EvaluationResult.to_json` writes, without the summary."""

    episodes: list[EpisodeRecord]
    provenance: dict[str, object] | None
    apart: list[EpisodeRecord] | None


@dataclass(frozen=True)
class EvaluationResult:
    """Every episode of an evaluation, with success rate and interval.

    The rate is of ``episodes``. Those that ended in an error are among them, as
    failures, or in ``apart`` and not in the rate: the evaluation's ``on_error`` says
    which.

    Args:
        episodes: in the order of their seeds.
        provenance: what is needed to repeat it (seed, purpose, versions, environment,
            policy), in what JSON holds.
        apart: episodes that ended in an error and are not counted.

    Examples:
        >>> records = [EpisodeRecord(i, "pick", i < 9, 1.0, 5) for i in range(10)]
        >>> result = EvaluationResult(records)
        >>> print(result)
        success 90.0 % [59.6, 98.2] over 10 episodes
         success  episodes  95 % interval  mean length  instruction
          90.0 %        10   59.6 to 98.2          5.0  pick
        >>> EvaluationResult.from_json(result.to_json()) == result
        True
    """

    episodes: Sequence[EpisodeRecord]
    provenance: Mapping[str, object] = field(default_factory=dict)
    apart: Sequence[EpisodeRecord] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "episodes", tuple(self.episodes))
        object.__setattr__(self, "apart", tuple(self.apart))
        if not self.episodes:
            raise SchemaError("EvaluationResult: expected at least one episode, got 0.")

    def __len__(self) -> int:
        return len(self.episodes)

    @property
    def successes(self) -> int:
        """How many episodes succeeded."""
        return sum(episode.success for episode in self.episodes)

    @property
    def success_rate(self) -> float:
        """Successes per episode, in ``[0, 1]``."""
        return self.successes / len(self)

    @property
    def failed(self) -> list[EpisodeRecord]:
        """The episodes that ended in an error, with their seeds and errors."""
        return [e for e in (*self.episodes, *self.apart) if e.error is not None]

    @property
    def remarks(self) -> list[str]:
        """Sentences about what the rate does not say; mostly none."""
        remarks = []
        if self.failed:
            how = "are not in the rate" if self.apart else "count as failures"
            first = self.failed[0]
            remarks.append(
                f"{len(self.failed)} of {len(self) + len(self.apart)} episodes ended "
                f"in an error and {how}; seed {first.seed}: {_first_line(first.error)}"
            )
        solved = sum(episode.solved_at_reset for episode in self.episodes)
        if solved:
            remarks.append(
                f"{solved} of {len(self)} episodes were solved at their reset, before "
                "any action, and count as successes."
            )
        return remarks

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 percent interval of :attr:`success_rate`: Wilson's.

        For an evaluation that its own outcomes stopped, as the provenance says, the
        wider, anytime-valid one.
        """
        if self.stopped_early:
            return rate_confidence_sequence(self.successes, len(self))
        return wilson_interval(self.successes, len(self))

    @property
    def stopped_early(self) -> bool:
        """True = the outcomes decided the number of episodes."""
        return STOPPING in self.provenance

    @property
    def mean_length(self) -> float:
        """Mean steps per episode."""
        return sum(episode.length for episode in self.episodes) / len(self)

    def by_instruction(self) -> dict[str, EvaluationResult]:
        """Return the results of each instruction, in alphabetical order."""
        groups: dict[str, list[EpisodeRecord]] = {}
        for episode in self.episodes:
            groups.setdefault(episode.instruction, []).append(episode)
        return {
            text: EvaluationResult(groups[text], self.provenance)
            for text in sorted(groups)
        }

    def with_provenance(self, **entries: object) -> EvaluationResult:
        """Return the same episodes with more entries in their provenance.

        Args:
            entries: what JSON can hold; an entry replaces one of the same name.

        Examples:
            >>> result = EvaluationResult([EpisodeRecord(0, "", True, 1.0, 5)])
            >>> result.with_provenance(policy="runs/reach").provenance
            {'policy': 'runs/reach'}
        """
        return replace(self, provenance={**self.provenance, **entries})

    def to_json(self) -> str:
        """Return episodes and provenance as JSON; the summary is for readers only."""
        low, high = self.interval
        summary = {
            "success_rate": self.success_rate,
            "interval_95": [low, high],
            "episodes": len(self),
            **({"remarks": self.remarks} if self.remarks else {}),
        }
        return json.dumps(
            {
                "summary": summary,
                "provenance": dict(self.provenance),
                "episodes": [_values(episode) for episode in self.episodes],
                **({"apart": list(map(_values, self.apart))} if self.apart else {}),
            },
            indent=2,
        )

    @classmethod
    def from_json(cls, source: str | Path) -> EvaluationResult:
        """Read a JSON text, or the file at a :class:`~pathlib.Path`.

        Raises:
            FileNotFoundError: there is no such file.
            SchemaError: it is no JSON, or not that of an evaluation.
        """
        values = read_json("EvaluationResult.from_json", source, StoredResult)
        return restore_result(values)

    def __str__(self) -> str:
        low, high = self.interval
        lines = [
            f"success {100 * self.success_rate:.1f} % "
            f"[{100 * low:.1f}, {100 * high:.1f}] over {len(self)} episodes",
            f"{'success':>8}  {'episodes':>8}  {'95 % interval':>13}  "
            f"{'mean length':>11}  instruction",
        ]
        for text, part in self.by_instruction().items():
            low, high = part.interval
            interval = f"{100 * low:.1f} to {100 * high:.1f}"
            lines.append(
                f"{100 * part.success_rate:>6.1f} %  {len(part):>8}  {interval:>13}  "
                f"{part.mean_length:>11.1f}  {text}"
            )
        lines += [f"note: {remark}" for remark in self.remarks]
        return "\n".join(lines)


def _values(episode: EpisodeRecord) -> dict[str, object]:
    """Return a record for JSON, without what is true of nearly every episode."""
    values = asdict(episode)
    rare = {"solved_at_reset": False, "error": None}
    return {k: v for k, v in values.items() if k not in rare or v != rare[k]}


def _first_line(text: str | None) -> str:
    line = (text or "").strip().split("\n")[0]
    return line if len(line) <= 200 else f"{line[:197]}..."


def restore_result(values: StoredResult) -> EvaluationResult:
    """Return the result whose JSON was read."""
    return EvaluationResult(
        values["episodes"], values["provenance"] or {}, values["apart"] or []
    )
