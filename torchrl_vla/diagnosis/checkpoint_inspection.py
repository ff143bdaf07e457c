"""Inspection of checkpoints, trainings and evaluations."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from torch import nn

from torchrl_vla._internal.tensor_file import read_tensors
from torchrl_vla.diagnosis.inspection import Inspection, Problem, Row
from torchrl_vla.evaluation import EvaluationResult
from torchrl_vla.policies import check_lerobot_health
from torchrl_vla.policies.module_policy import declared
from torchrl_vla.recipes import load_checkpoint
from torchrl_vla.recipes.training_state import STATE_FILE
from torchrl_vla.schema import RobotDatasetMetadata

_LOG = "log.csv"


def inspect_own_checkpoint(path: Path) -> Inspection:
    """Inspect a folder that ``train`` or ``finetune`` wrote."""
    policy, space = load_checkpoint(path)
    metadata = RobotDatasetMetadata.from_json(path / "metadata.json")
    texts = declared(policy, "instructions", None)
    count = sum(weight.numel() for weight in policy.parameters())
    facts: dict[str, object] = {
        "policy": type(policy).__name__,
        "parameters": f"{count:,}",
        "size": _size(path),
        "chunk": f"H = {policy.chunk_size}, A = {policy.action_dim}",
        "space": "robot space" if space is None else str(space.policy_space),
        "trained on": metadata.dataset_id,
        "control rate": f"{metadata.control_frequency_hz} Hz",
        "instructions": "none" if texts is None else len(texts),
    }
    problems = [*_weights(policy), *_scales(metadata)]
    tables: dict[str, list[Row]] = {"actions": _dimensions(metadata)}
    return _with_log(
        path, Inspection(str(path), "checkpoint", True, facts, tables, problems)
    )


def inspect_lerobot_checkpoint(path: Path) -> Inspection:
    """Inspect a checkpoint of LeRobot's, without loading it."""
    report = check_lerobot_health(path)
    problems = [
        Problem(str(path), text.rstrip("."), "", is_note="Install it with" in text)
        for text in report.problems
    ]
    facts: dict[str, object] = {
        "type": report.policy_type or "unknown",
        "size": _size(path),
        "LeRobot here": report.lerobot_version or "not installed",
    }
    return Inspection(str(path), "LeRobot checkpoint", True, facts, {}, problems)


def inspect_training(path: Path) -> Inspection:
    """Inspect the folder of a training that has not finished, or that left a log."""
    facts: dict[str, object] = {}
    problems: list[Problem] = []
    curves: dict[str, list[tuple[float, float]]] = {}
    if (path / STATE_FILE).is_file():
        remedy = "Begin the training again in another folder."
        state = read_tensors(
            "inspect_path", path / STATE_FILE, dict[str, Any], remedy=remedy
        )
        settings: Mapping[str, object] = state["settings"]
        facts = {"iteration": state["iteration"], **settings, "size": _size(path)}
        losses = [tuple(e) for e in state["parts"].get("loop", {}).get("losses", ())]
        bad = [step for step, loss in losses if not isfinite(loss)]
        if bad:
            message = f"expected finite losses, got others from step {bad[0]} on"
            remedy = "Lower lr, and look at the data with `torchrl-vla inspect`."
            problems.append(Problem(STATE_FILE, message, remedy))
        curves["loss"] = [(step, loss) for step, loss in losses if isfinite(loss)]
        note = "the training has not finished"
        remedy = "Run the same command again to resume it."
        problems.append(Problem(STATE_FILE, note, remedy, is_note=True))
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    inspection = Inspection(
        str(path), "training", True, facts, {}, problems, curves=curves
    )
    return _with_log(path, inspection)


def inspect_evaluation(path: Path) -> Inspection:
    """Inspect a file that ``evaluate --json`` wrote."""
    result = EvaluationResult.from_json(path)
    low, high = result.interval
    facts: dict[str, object] = {
        "episodes": len(result),
        "success": f"{100 * result.success_rate:.1f} % "
        f"[{100 * low:.1f}, {100 * high:.1f}]",
        "mean length": f"{result.mean_length:.1f} steps",
        "policy": result.provenance.get("policy", "unknown"),
    }
    rows: list[Row] = [
        {
            "success, %": round(100 * part.success_rate, 1),
            "episodes": len(part),
            "mean length": round(part.mean_length, 1),
            "instruction": text,
        }
        for text, part in result.by_instruction().items()
    ]
    problems = list(_episodes(result))
    return Inspection(
        str(path), "evaluation", True, facts, {"instructions": rows}, problems
    )


def _episodes(result: EvaluationResult) -> Iterator[Problem]:
    seeds = Counter((e.seed, e.instruction) for e in result.episodes)
    again = [seed for (seed, _), count in seeds.items() if count > 1]
    if again:
        message = f"expected each seed once, got {again[:5]} more than once"
        remedy = "Evaluate again: the same episode counts twice, so the interval is "
        yield Problem("'episodes'", message, remedy + "too narrow.")
    for row, episode in enumerate(result.episodes):
        if episode.length < 1 or not isfinite(episode.episode_return):
            message = "expected a length >= 1 and a finite return, got "
            message += f"{episode.length} and {episode.episode_return}"
            yield Problem(f"episode {row}", message, "Evaluate again.")
            return
    if not result.provenance:
        message = "expected the origin of the evaluation, got none"
        remedy = "It cannot be repeated; write it with `evaluate --json`."
        yield Problem("'provenance'", message, remedy)


def _weights(policy: nn.Module) -> Iterator[Problem]:
    for name, weight in policy.state_dict().items():
        if weight.is_floating_point() and not bool(weight.isfinite().all()):
            count = int((~weight.isfinite()).sum())
            message = f"expected finite weights, got {count} others of {weight.numel()}"
            remedy = "The training diverged: train again with a lower lr."
            yield Problem(f"weights {name!r}", message, remedy)


def _scales(metadata: RobotDatasetMetadata) -> Iterator[Problem]:
    for name in ("action_statistics", "state_statistics"):
        stats = vars(metadata)[name]
        if stats is None:
            continue
        still = (stats.std == 0).nonzero().flatten().tolist()
        if still:
            message = f"dimensions {still} did not move in the training data"
            remedy = "They are centred, not scaled."
            yield Problem(name, message, remedy, is_note=True)


def _dimensions(metadata: RobotDatasetMetadata) -> list[Row]:
    stats = metadata.action_statistics
    if stats is None:
        return []
    names = metadata.action_names or tuple(map(str, range(stats.dim)))
    columns = (names, *(vars(stats)[n].tolist() for n in ("min", "max", "mean", "std")))
    return [
        {"dimension": name, "min": low, "max": high, "mean": mean, "std": std}
        for name, low, high, mean, std in zip(*columns, strict=True)
    ]


def _with_log(path: Path, inspection: Inspection) -> Inspection:
    """Return the inspection with the numbers of ``log.csv``, if there is one."""
    if not (path / _LOG).is_file():
        return inspection
    with (path / _LOG).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    problems = list(inspection.problems)
    curves = dict(inspection.curves)
    if not rows:
        message = "expected a line per iteration, got none"
        problems.append(Problem(_LOG, message, "Run the training again."))
    step, *columns = rows[0] if rows else [""]
    for column in columns:
        cells = [(float(row[step]), float(row[column])) for row in rows if row[column]]
        bad = [x for x, y in cells if not isfinite(y)]
        if bad:
            message = f"{column!r} is not finite in iteration {bad[0]:g}"
            problems.append(Problem(_LOG, message, "Lower lr, and train again."))
        elif len(cells) > 1:
            curves[column] = cells
    return Inspection(
        inspection.path,
        inspection.kind,
        inspection.readable,
        {**inspection.facts, "iterations in log.csv": len(rows)},
        inspection.tables,
        problems,
        curves=curves,
    )


def _size(path: Path) -> str:
    total = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return f"{total / 1e6:.1f} MB"
