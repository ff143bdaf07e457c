"""Tables of two policies' outcomes, each with its interval and its test.

One for the same episodes, one for other episodes, and one for the same episodes until
the difference was clear.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torchrl_vla.evaluation.confidence_sequence import confidence_sequence, e_value
from torchrl_vla.evaluation.result import EpisodeRecord
from torchrl_vla.evaluation.success_statistics import (
    fisher_test,
    mcnemar_test,
    newcombe_interval,
    newcombe_paired_interval,
)


class OutcomeTable(ABC):
    """The counts of two policies' successes."""

    #: Name of the test, in printed tables.
    test: str
    #: True = the policies ran the same episodes.
    is_paired: bool

    @classmethod
    @abstractmethod
    def from_episodes(
        cls, a: Sequence[EpisodeRecord], b: Sequence[EpisodeRecord]
    ) -> OutcomeTable:
        """Count the outcomes; pairs have the same index in both sequences."""

    @property
    @abstractmethod
    def rates(self) -> tuple[float, float]:
        """The success rates of the first policy and of the second."""

    @property
    def difference(self) -> float:
        """The first policy's success rate minus the second's."""
        return self.rates[0] - self.rates[1]

    @abstractmethod
    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the interval of :attr:`difference`."""

    @property
    @abstractmethod
    def p_value(self) -> float:
        """Two-sided p-value of the policies being equally good."""

    @property
    @abstractmethod
    def counts(self) -> dict[str, int]:
        """The counts by name, for tables and JSON."""


@dataclass(frozen=True)
class PairedTable(OutcomeTable):
    """Outcomes of two policies on the same episodes, of a number fixed beforehand.

    Args:
        both: episodes in which both succeeded.
        only_a: in which only the first did.
        only_b: in which only the second did.
        neither: in which none did.

    Examples:
        >>> table = PairedTable(both=36, only_a=12, only_b=2, neither=0)
        >>> round(table.difference, 3), round(table.p_value, 4)
        (0.2, 0.0129)
        >>> [round(end, 4) for end in table.interval()]
        [0.0569, 0.3404]
    """

    both: int
    only_a: int
    only_b: int
    neither: int
    test = "McNemar's exact"
    is_paired = True

    @classmethod
    def from_episodes(
        cls, a: Sequence[EpisodeRecord], b: Sequence[EpisodeRecord]
    ) -> PairedTable:
        """Count the outcomes of the pairs."""
        pairs = [(one.success, two.success) for one, two in zip(a, b, strict=True)]
        kinds = ((True, True), (True, False), (False, True), (False, False))
        return cls(*(pairs.count(kind) for kind in kinds))

    @property
    def episodes(self) -> int:
        """The number of pairs."""
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def rates(self) -> tuple[float, float]:
        """The success rates of the first policy and of the second."""
        total = self.episodes
        return (self.both + self.only_a) / total, (self.both + self.only_b) / total

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return Newcombe's paired interval of :attr:`difference`."""
        return newcombe_paired_interval(**self.counts, confidence=confidence)

    @property
    def p_value(self) -> float:
        """The p-value of McNemar's exact test."""
        return mcnemar_test(self.only_a, self.only_b)

    @property
    def counts(self) -> dict[str, int]:
        """The counts by name."""
        return {
            "both": self.both,
            "only_a": self.only_a,
            "only_b": self.only_b,
            "neither": self.neither,
        }


class SequentialTable(PairedTable):
    """Outcomes of two policies on the same episodes, stopped by the outcomes.

    Interval and p-value are anytime-valid: they hold however often one looked. The
    interval is wider than that of a fixed number of episodes.

    Examples:
        >>> table = SequentialTable(both=36, only_a=12, only_b=2, neither=0)
        >>> [round(end, 2) for end in table.interval()]
        [-0.02, 0.43]
    """

    test = "anytime-valid"

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the anytime-valid interval of :attr:`difference`."""
        same = self.both + self.neither
        return confidence_sequence(self.only_a, self.only_b, same, confidence)

    @property
    def p_value(self) -> float:
        """The inverse of the e-value against equal policies."""
        return min(1.0, 1 / e_value(self.only_a, self.only_b))


@dataclass(frozen=True)
class UnpairedTable(OutcomeTable):
    """Outcomes of two policies on different episodes of the same environment.

    Args:
        successes_a: of the first policy.
        episodes_a: of the first policy.
        successes_b: of the second policy.
        episodes_b: of the second policy.

    Examples:
        >>> table = UnpairedTable(56, 70, 48, 80)
        >>> [round(end, 4) for end in table.interval()]
        [0.0524, 0.3339]
    """

    successes_a: int
    episodes_a: int
    successes_b: int
    episodes_b: int
    test = "Fisher's exact"
    is_paired = False

    @classmethod
    def from_episodes(
        cls, a: Sequence[EpisodeRecord], b: Sequence[EpisodeRecord]
    ) -> UnpairedTable:
        """Count the successes of each policy."""
        return cls(
            sum(episode.success for episode in a),
            len(a),
            sum(episode.success for episode in b),
            len(b),
        )

    @property
    def rates(self) -> tuple[float, float]:
        """The success rates of the first policy and of the second."""
        return self.successes_a / self.episodes_a, self.successes_b / self.episodes_b

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return Newcombe's interval for independent rates."""
        return newcombe_interval(**self.counts, confidence=confidence)

    @property
    def p_value(self) -> float:
        """The p-value of Fisher's exact test."""
        return fisher_test(**self.counts)

    @property
    def counts(self) -> dict[str, int]:
        """The counts by name."""
        return {
            "successes_a": self.successes_a,
            "episodes_a": self.episodes_a,
            "successes_b": self.successes_b,
            "episodes_b": self.episodes_b,
        }
