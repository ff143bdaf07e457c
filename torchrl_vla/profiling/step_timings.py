"""Raw samples of a training's steps, and their statistics."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torchrl_vla._internal.file_origin import Origin, read_text

#: One line of JSON per step, written when the step ends.
SAMPLES_FILE = "step_samples.jsonl"
#: Statistics over the steps, under the names that dashboards read.
SUMMARY_FILE = "step_timing_summary.json"

_PERCENTILES = (25, 50, 75, 95, 99)


@dataclass(frozen=True)
class StepSample:
    """Times and memory of one step, in seconds and bytes.

    Args:
        step: number of the step, from 1 on.
        is_warmup: True = one of the first steps of its process, kept apart.
        total_update_s: the step without fetching its batch.
        dataloading_s: fetching and transforming the batch.
        sections: name to seconds, summed over the step. Those that are not part of
            another one and ``other`` add up to ``total_update_s``.
        calls: how many times each section was entered.
        inside: sections that are part of another one, such as ``policy_call``.
        memory: ``allocated_bytes`` and ``reserved_bytes`` at the end of the step; empty
            on the CPU.
    """

    step: int
    is_warmup: bool
    total_update_s: float
    dataloading_s: float
    sections: Mapping[str, float]
    calls: Mapping[str, int] = field(default_factory=dict)
    inside: Sequence[str] = ()
    memory: Mapping[str, int] = field(default_factory=dict)

    def to_json_line(self) -> str:
        """Return the sample as one line."""
        return json.dumps(asdict(self)) + "\n"


def read_step_samples(folder: Path | str) -> list[StepSample]:
    """Read the steps that a profile has recorded so far.

    A process that is killed leaves all the steps that ended before; a line that it cut
    off is left out.

    Args:
        folder: of the profile.

    Raises:
        FileNotFoundError: nothing was recorded there.
        SchemaError: a whole line is no sample.
    """
    path = Path(folder) / SAMPLES_FILE
    remedy = "Pass the folder that a TrainingProfiler wrote."
    origin = Origin.of_file("read_step_samples", path, remedy)
    lines = read_text(origin, path).splitlines(keepends=True)
    with origin.reading("one sample per line"):
        return [StepSample(**json.loads(line)) for line in lines if line[-1] == "\n"]


def read_summary(folder: Path | str) -> dict[str, Any]:
    """Read ``step_timing_summary.json`` of a profile.

    Args:
        folder: of the profile.

    Raises:
        FileNotFoundError: the profile was not finished.
        SchemaError: the file is damaged.
    """
    path = Path(folder) / SUMMARY_FILE
    remedy = "Pass the folder that `train --profile-mode timing` wrote."
    origin = Origin.of_file("read_summary", path, remedy)
    with origin.reading("a JSON object"):
        return dict(json.loads(read_text(origin, path)))


def statistics_of(values: Sequence[float]) -> dict[str, float | int | None]:
    """Return count, mean, median, extremes and percentiles of numbers.

    Percentiles interpolate linearly, as NumPy's do. Without numbers, ``count`` is 0 and
    the rest None.

    Examples:
        >>> statistics_of([1.0, 2.0, 4.0])["median"]
        2.0
    """
    names = [f"p{percent}" for percent in _PERCENTILES]
    if not values:
        empty = dict.fromkeys(["mean", "median", "min", "max", *names])
        return {"count": 0, **empty}
    ordered = sorted(values)
    return {
        "count": len(ordered),
        "mean": statistics.fmean(ordered),
        "median": statistics.median(ordered),
        "min": ordered[0],
        "max": ordered[-1],
        **{
            name: _percentile(ordered, percent)
            for name, percent in zip(names, _PERCENTILES, strict=True)
        },
    }


def _percentile(ordered: Sequence[float], percent: float) -> float:
    place = percent / 100 * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def summarize_steps(samples: Iterable[StepSample]) -> dict[str, object]:
    """Return the statistics of the steps, warm-up steps apart.

    Returns:
        ``total_update_s``, ``dataloading_s`` and ``<section>_s``: statistics of the
        steps after the warm-up; ``warmup``: the same of the warm-up steps;
        ``calls_per_step``: means; ``sections_inside``: those that are part of others;
        ``memory_timeline``: one entry per step with a memory sample.
    """
    samples = list(samples)
    steady = [sample for sample in samples if not sample.is_warmup]
    warmup = [sample for sample in samples if sample.is_warmup]
    names = list(dict.fromkeys(name for sample in samples for name in sample.sections))
    calls = {
        name: statistics.fmean(sample.calls.get(name, 0) for sample in steady)
        for name in names
        if steady and name != "other"
    }
    inside = {name for sample in samples for name in sample.inside}
    return {
        **_statistics_by_name(steady, names),
        "warmup": _statistics_by_name(warmup, names),
        "calls_per_step": calls,
        "sections_inside": sorted(inside),
        "memory_timeline": [
            {"step": sample.step, **sample.memory}
            for sample in samples
            if sample.memory
        ],
    }


def _statistics_by_name(
    samples: Sequence[StepSample], names: Sequence[str]
) -> dict[str, dict[str, float | int | None]]:
    return {
        "total_update_s": statistics_of([s.total_update_s for s in samples]),
        "dataloading_s": statistics_of([s.dataloading_s for s in samples]),
        **{
            f"{name}_s": statistics_of(
                [s.sections[name] for s in samples if name in s.sections]
            )
            for name in names
        },
    }
