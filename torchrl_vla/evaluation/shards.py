"""Shards of an evaluation: parts that processes run apart, and their merging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torchrl_vla.errors import VLAError
from torchrl_vla.evaluation.result import EpisodeRecord, EvaluationResult

#: Entry of the provenance of a shard.
SHARD = "shard"

#: Entries of the provenance that shards of one run may differ in.
_MAY_DIFFER = (SHARD, "num_envs", "platform", "command")


class ShardError(VLAError, ValueError):
    """Results are not the shards of one evaluation, or there is no such shard."""


@dataclass(frozen=True)
class Shard:
    """One of ``count`` parts of an evaluation: every ``count``-th episode.

    Args:
        number: of the part, from 1.
        count: how many parts there are.

    Raises:
        ShardError: the number is not in ``1 .. count``.

    Examples:
        >>> Shard(3, 8).indices(20)
        [2, 10, 18]
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ShardError(
                f"evaluate: expected a shard of 1/{max(1, self.count)} to "
                f"{max(1, self.count)}/{max(1, self.count)}, got "
                f"{self.number}/{self.count}."
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``"3/8"``, the third of eight.

        Raises:
            ShardError: the text has another form.
        """
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal()):
            raise ShardError(
                f"evaluate: expected a shard such as 3/8 (the third of eight), got "
                f"{text!r}."
            )
        return cls(int(number), int(count))

    def indices(self, episodes: int) -> list[int]:
        """Return the shard's episodes, of ``episodes`` in all.

        Raises:
            ShardError: there are fewer episodes than shards.
        """
        if episodes < self.count:
            raise ShardError(
                f"evaluate: expected at most one shard per episode, got {self.count} "
                f"shards of {episodes} episodes. Take fewer shards."
            )
        return list(range(self.number - 1, episodes, self.count))


def merge_shards(results: Sequence[EvaluationResult]) -> EvaluationResult:
    """Return the one evaluation that shards are the parts of.

    Its episodes are those of an evaluation in one process, in the same order. What the
    shards' provenance says differently, such as their machines, is listed in its entry
    ``"shards"``.

    Args:
        results: every shard of one run, once, in any order.

    Raises:
        ShardError: one is no shard or is of another run, policy, environment or
            version; or a shard is missing or there twice.

    Examples:
        >>> from torchrl_vla.envs import TabletopEnv
        >>> from torchrl_vla.evaluation import evaluate
        >>> env = TabletopEnv(2, image_size=16)
        >>> options = {"progress": False}
        >>> whole = evaluate(env, env.make_expert(), 5, **options)
        >>> parts = [
        ...     evaluate(env, env.make_expert(), 5, shard=(n, 2), **options)
        ...     for n in (2, 1)
        ... ]
        >>> merge_shards(parts).episodes == whole.episodes
        True
    """
    if not results:
        raise ShardError("merge_shards: expected at least one shard, got none.")
    parts = {}
    count = 0
    for position, result in enumerate(results):
        shard, count = _shard_of(result, position)
        if shard in parts:
            raise ShardError(
                f"merge_shards: expected every shard once, got {shard}/{count} twice. "
                "Leave one out."
            )
        parts[shard] = result
    missing = [number for number in range(1, count + 1) if number not in parts]
    if missing:
        raise ShardError(
            f"merge_shards: expected {count} shards, got {len(parts)}: "
            f"{', '.join(f'{number}/{count}' for number in missing)} missing. Evaluate "
            f"with --shard {missing[0]}/{count} (shard=({missing[0]}, {count}))."
        )
    ordered = [parts[number] for number in sorted(parts)]
    _check_one_run(ordered)
    return EvaluationResult(
        _in_order([list(part.episodes) for part in ordered], ordered),
        _merged_provenance(ordered),
        _in_order([list(part.apart) for part in ordered], ordered),
    )


def _shard_of(result: EvaluationResult, position: int) -> tuple[int, int]:
    about = result.provenance.get(SHARD)
    if not isinstance(about, Mapping):
        raise ShardError(
            f"merge_shards: expected a shard at position {position}, got a result "
            f"without {SHARD!r} in its provenance. Evaluate with --shard 1/2 "
            "(shard=(1, 2))."
        )
    seeds, known = about["seeds"], {e.seed for e in (*result.episodes, *result.apart)}
    if len(known) != len(result) + len(result.apart) or known != set(seeds):
        raise ShardError(
            f"merge_shards: expected {len(seeds)} episodes in shard "
            f"{about['number']}/{about['count']}, each seed once, got "
            f"{len(result) + len(result.apart)}. Evaluate it again."
        )
    return about["number"], about["count"]


def _check_one_run(parts: list[EvaluationResult]) -> None:
    first = _of_run(parts[0])
    for part in parts[1:]:
        other = _of_run(part)
        differing = [
            f"{key} {_short(first.get(key))} and {_short(other.get(key))}"
            for key in sorted(first.keys() | other.keys())
            if first.get(key) != other.get(key)
        ]
        if differing:
            raise ShardError(
                "merge_shards: expected shards of one run, got "
                f"{'; '.join(differing)}. Evaluate all with the same options."
            )


def _of_run(part: EvaluationResult) -> dict[str, object]:
    """Return what all shards of a run share, their number among it."""
    about = dict(part.provenance[SHARD])  # type: ignore[call-overload]
    known = {k: v for k, v in part.provenance.items() if k not in _MAY_DIFFER}
    known.pop("on_error", None)  # only there where an episode ended in an error
    return {**known, "count": about["count"], "episodes": about["episodes"]}


def _in_order(
    records: list[list[EpisodeRecord]], parts: list[EvaluationResult]
) -> list[EpisodeRecord]:
    """Return the shards' records in the order of the run's episodes."""
    place = {}
    for offset, part in enumerate(parts):
        about: dict = part.provenance[SHARD]  # type: ignore[assignment]
        for i, seed in enumerate(about["seeds"]):
            place[seed] = i * len(parts) + offset
    return sorted(
        (record for some in records for record in some),
        key=lambda record: place[record.seed],
    )


def _merged_provenance(parts: list[EvaluationResult]) -> dict[str, object]:
    merged: dict[str, object] = {}
    for part in parts:
        merged |= {k: v for k, v in part.provenance.items() if k not in _MAY_DIFFER}
    own = [
        {k: part.provenance[k] for k in _MAY_DIFFER[1:] if k in part.provenance}
        for part in parts
    ]
    shared = {k: v for k, v in own[0].items() if all(o.get(k) == v for o in own)}
    differing = [{k: v for k, v in o.items() if k not in shared} for o in own]
    return {**merged, **shared, "shards": differing}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
