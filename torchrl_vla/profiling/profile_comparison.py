"""Comparison of two profiles: times and numerics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, Literal

from torchrl_vla._internal.json_source import read_json
from torchrl_vla.errors import SchemaError
from torchrl_vla.profiling.run_environment import NUMERIC_FACTS, TIMING_FACTS

#: Relative change of a time that two runs of the same code may show on one machine.
NOISE = 0.05

Numerics = Literal["identical", "changed", "not comparable"]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class TimeRatio:
    """Ratio of the medians of a section, the second run over the first.

    Args:
        ratio: below 1 = the second is faster.
        low: lower end of the band.
        high: upper end.
        verdict: ``"faster"``, ``"slower"`` or ``"same"`` (within the noise).
    """

    ratio: float
    low: float
    high: float
    verdict: Literal["faster", "slower", "same"]


@dataclass(frozen=True)
class ProfileComparison:
    """Two profiles, the second against the first.

    Args:
        times: by section, ``total_update_s`` first.
        numerics: ``"identical"`` = the outputs agree bit for bit.
        operators: likewise, of the operators that were called.
        numeric_differences: facts of the environments for which numbers cannot be
            compared.
        timing_differences: facts for which the ratios say little.
    """

    times: Mapping[str, TimeRatio]
    numerics: Numerics
    operators: Numerics
    numeric_differences: Mapping[str, tuple[object, object]]
    timing_differences: Mapping[str, tuple[object, object]]

    def __str__(self) -> str:
        lines = [f"{'':<20}{'b / a':>7}   band"]
        for name, time in self.times.items():
            band = f"[{time.low:.2f}, {time.high:.2f}]"
            lines.append(f"{name:<20}{time.ratio:7.2f}   {band:<14} {time.verdict}")
        lines.append(f"numerics: {self.numerics}; operators: {self.operators}")
        for what, found in (
            ("numerics", self.numeric_differences),
            ("times", self.timing_differences),
        ):
            for name, (a, b) in found.items():
                lines.append(f"{what} are of another {name}: {a!r} and {b!r}")
        return "\n".join(lines)


def compare_profiles(
    a: Row | Path | str, b: Row | Path | str, noise: float = NOISE
) -> ProfileComparison:
    """Compare two rows of a case: is the second faster, and are its numbers the same?

    The band of a ratio comes from the quartiles of both runs (median plus or minus 1.57
    interquartile ranges over the root of the count, McGill et al. 1978), widened by
    ``noise``: two runs of the same code on one machine differ by more than their steps
    do. Numbers are compared within one environment only: in another version of PyTorch,
    on another device or with another number of threads they are ``"not comparable"``.

    Args:
        a: ``profiling_row.json``, or its contents.
        b: likewise.
        noise: relative.

    Raises:
        SchemaError: one is no row, or they are of two cases.
    """
    a, b = _read(a), _read(b)
    if a["policy"] != b["policy"] or a["spec"] != b["spec"]:
        raise SchemaError(
            "compare_profiles: expected two rows of one case, got "
            f"{a['policy']!r} {a['spec']} and {b['policy']!r} {b['spec']}. Pass rows "
            "of the same policy and settings."
        )
    numeric = _differences(a, b, NUMERIC_FACTS)
    timing = _differences(a, b, TIMING_FACTS)
    if a["profile_mode"] != b["profile_mode"]:
        timing["profile_mode"] = (a["profile_mode"], b["profile_mode"])
    return ProfileComparison(
        times=_ratios(a["step_timing_summary"], b["step_timing_summary"], noise),
        numerics=_verdict(a, b, "output_fingerprint", bool(numeric)),
        operators=_verdict(a, b, "operator_fingerprint", bool(numeric)),
        numeric_differences=numeric,
        timing_differences=timing,
    )


def _read(row: Row | Path | str) -> Row:
    where = "row"
    match row:
        case Path() | str():
            where = str(row)
            found: Row = read_json("compare_profiles", Path(row), dict[str, Any])
        case _:
            found = row
    needed = ("policy", "spec", "profile_mode", "step_timing_summary")
    missing = [name for name in needed if name not in found]
    if missing:
        raise SchemaError(
            f"compare_profiles: expected a profiling row at {where!r}, got none with "
            f"{missing}. Pass profiling_row.json of `torchrl-vla profile`."
        )
    return found


def _environment(row: Row) -> Mapping[str, object]:
    for part in ("deterministic_forward", "step_timing_summary"):
        if found := row.get(part, {}).get("environment"):
            return found
    return {}


def _differences(
    a: Row, b: Row, names: tuple[str, ...]
) -> dict[str, tuple[object, object]]:
    first, second = _environment(a), _environment(b)
    return {
        name: (first.get(name), second.get(name))
        for name in names
        if first.get(name) != second.get(name) or name not in first
    }


def _verdict(a: Row, b: Row, kind: str, is_other_environment: bool) -> Numerics:
    first, second = (row.get("deterministic_forward", {}) for row in (a, b))
    facts = ("seed", "reference_batch_size")
    if is_other_environment or kind not in first or kind not in second:
        return "not comparable"
    if any(first.get(name) != second.get(name) for name in facts):
        return "not comparable"
    return "identical" if first[kind] == second[kind] else "changed"


def _ratios(a: Row, b: Row, noise: float) -> dict[str, TimeRatio]:
    names = [name for name in a if name.endswith("_s") and name in b]
    names.sort(key=lambda name: (name != "total_update_s", name))
    return {
        name: _ratio(a[name], b[name], noise)
        for name in names
        if a[name].get("count") and b[name].get("count") and a[name]["median"] > 0
    }


def _ratio(a: Row, b: Row, noise: float) -> TimeRatio:
    ratio = b["median"] / a["median"]
    low = (b["median"] - _notch(b)) / (a["median"] + _notch(a))
    rest = a["median"] - _notch(a)
    high = (b["median"] + _notch(b)) / rest if rest > 0 else float("inf")
    low, high = max(0.0, low * (1 - noise)), high * (1 + noise)
    if high < 1:
        return TimeRatio(ratio, low, high, "faster")
    return TimeRatio(ratio, low, high, "slower" if low > 1 else "same")


def _notch(stats: Row) -> float:
    return 1.57 * (stats["p75"] - stats["p25"]) / sqrt(stats["count"])
