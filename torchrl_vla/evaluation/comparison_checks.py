"""Checks that two evaluations measured the same thing, and remarks."""

from __future__ import annotations

from collections import Counter

from torchrl_vla.evaluation.result import EvaluationResult
from torchrl_vla.schema import VLAError

_LISTED = 3


class ComparisonError(VLAError, ValueError):
    """Two evaluations do not measure the same thing."""


def check_same_setting(
    a: EvaluationResult, b: EvaluationResult, names: tuple[str, str]
) -> None:
    """Raise unless both used one environment, and both modes or both samples.

    What the provenance of an evaluation does not hold is not compared.

    Raises:
        ComparisonError: lists what differs.
    """
    about_a, about_b = (
        {**_environment(result), **_mapping(result, "numbers")} for result in (a, b)
    )
    differing = [
        f"{key} {_short(about_a[key])} and {_short(about_b[key])}"
        for key in about_a
        if key in about_b and about_a[key] != about_b[key]
    ]
    if differing:
        raise ComparisonError(
            f"compare: expected {names[0]} and {names[1]} from the same environment, "
            f"got {'; '.join(differing)}. Evaluate both in one."
        )
    modes = [result.provenance.get("deterministic") for result in (a, b)]
    if None not in modes and modes[0] != modes[1]:
        raise ComparisonError(
            f"compare: expected both evaluations with the same deterministic, got "
            f"{modes[0]} for {names[0]} and {modes[1]} for {names[1]}: one took the "
            "policy's mode and the other samples. Evaluate both alike."
        )


def check_same_episodes(
    a: EvaluationResult, b: EvaluationResult, names: tuple[str, str]
) -> None:
    """Raise unless each episode of one has its counterpart in the other.

    Raises:
        ComparisonError: the purposes differ; says how many seeds are shared and how
            many are not, or which of them have another instruction.
    """
    purposes = [result.provenance.get("purpose") for result in (a, b)]
    if None not in purposes and purposes[0] != purposes[1]:
        raise ComparisonError(
            f"compare: expected episodes of one purpose, got {purposes[0]!r} for "
            f"{names[0]} and {purposes[1]!r} for {names[1]}: they share no initial "
            "state. Evaluate both with the same purpose; or pass unpaired=True "
            "(--unpaired)."
        )
    texts_a, texts_b = (
        _instruction_of(*pair) for pair in zip((a, b), names, strict=True)
    )
    shared = texts_a.keys() & texts_b.keys()
    only_a, only_b = len(texts_a) - len(shared), len(texts_b) - len(shared)
    if only_a or only_b:
        raise ComparisonError(
            f"compare: expected the same seeds, got {len(shared)} shared, {only_a} "
            f"only in {names[0]}, {only_b} only in {names[1]}. Evaluate both with the "
            "same seed and episodes; or pass unpaired=True (--unpaired), for a wider "
            "interval that needs no pairs."
        )
    other = [seed for seed in sorted(shared) if texts_a[seed] != texts_b[seed]]
    if other:
        seed = other[0]
        raise ComparisonError(
            f"compare: expected the same instruction for each seed, got {len(other)} "
            f"of {len(shared)} that differ, seed {seed}: {texts_a[seed]!r} in "
            f"{names[0]} and {texts_b[seed]!r} in {names[1]}. The environments are "
            "not the same: evaluate both with the same tasks."
        )


def _instruction_of(result: EvaluationResult, name: str) -> dict[int, str]:
    """Return the instruction of each seed; raise where a seed occurs twice."""
    seeds = Counter(episode.seed for episode in result.episodes)
    twice = [seed for seed, count in seeds.items() if count > 1]
    if twice:
        raise ComparisonError(
            f"compare: expected every seed once, got {_list(twice)} more than once in "
            f"{name}. Repeated episodes tell nothing new: leave them out."
        )
    return {episode.seed: episode.instruction for episode in result.episodes}


def remark_differences(
    a: EvaluationResult,
    b: EvaluationResult,
    names: tuple[str, str],
    *,
    is_paired: bool,
) -> list[str]:
    """Return a sentence for each difference that may matter and is no error."""
    remarks = [
        f"{name} does not say which environment it used; that it is the same one is "
        "taken on trust."
        for result, name in ((a, names[0]), (b, names[1]))
        if not _environment(result)
    ]
    remarks += [
        f"{name} ran on the initial states of {purpose}, which may be those that the "
        "policy was trained on: the rate may not hold for others."
        for result, name in ((a, names[0]), (b, names[1]))
        if (purpose := result.provenance.get("purpose")) not in (None, "evaluation")
    ]
    remarks += [
        f"{name}: {remark}"
        for result, name in ((a, names[0]), (b, names[1]))
        for remark in result.remarks
    ]
    versions_a, versions_b = (_mapping(result, "versions") for result in (a, b))
    differing = [
        f"{package} {versions_a.get(package)} and {versions_b.get(package)}"
        for package in sorted(versions_a.keys() | versions_b.keys())
        if versions_a.get(package) != versions_b.get(package)
    ]
    if versions_a and versions_b and differing:
        remarks.append(f"the versions differ: {', '.join(differing)}.")
    hashes = [_mapping(result, "policy").get("sha256") for result in (a, b)]
    ablations = [result.provenance.get("ablation") for result in (a, b)]
    is_same = hashes[0] == hashes[1] and ablations[0] == ablations[1]
    if hashes[0] is not None and is_same:
        remarks.append("both are the same policy, by the hash of its files.")
    if is_paired:
        return remarks
    texts_a, texts_b = (set(result.by_instruction()) for result in (a, b))
    if texts_a != texts_b:
        lonely = ", ".join(repr(text) for text in sorted(texts_a ^ texts_b)[:_LISTED])
        remarks.append(
            f"{len(texts_a ^ texts_b)} instructions were given to one policy only, "
            f"such as {lonely}: the rates are of other mixtures of tasks."
        )
    if a.stopped_early or b.stopped_early:
        remarks.append(
            "an evaluation was stopped by its own outcomes, which the interval of "
            "independent episodes does not allow for: it is too narrow."
        )
    return remarks


def _environment(result: EvaluationResult) -> dict[str, object]:
    return _mapping(result, "environment")


def _mapping(result: EvaluationResult, key: str) -> dict[str, object]:
    value = result.provenance.get(key)
    return dict(value) if isinstance(value, dict) else {}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _list(values: list[int]) -> str:
    text = ", ".join(map(str, sorted(values)[:_LISTED]))
    return (
        text if len(values) <= _LISTED else f"{text} and {len(values) - _LISTED} more"
    )
