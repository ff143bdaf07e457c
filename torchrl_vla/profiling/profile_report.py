"""Report of profiled rows over time: a page, a table and a snapshot."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from torchrl_vla._internal.charts import line_chart
from torchrl_vla._internal.durable_files import write_text
from torchrl_vla._internal.html_page import html_page, row_table
from torchrl_vla._internal.json_source import read_json
from torchrl_vla.errors import SchemaError
from torchrl_vla.profiling.artifact_index import ROW_FILE
from torchrl_vla.profiling.profile_comparison import compare_profiles

_PHASES = ("total_update", "forward", "backward", "optimizer", "dataloading")
_PEAKS = ("peak_memory_allocated_bytes", "peak_rss_bytes")

Row = Mapping[str, Any]


def read_rows(folder: Path | str) -> list[Row]:
    """Read the rows below a folder, oldest first.

    Args:
        folder: that ``run_profiles`` wrote to, or a clone of a results repository.

    Raises:
        SchemaError: there is none.
    """
    folder = Path(folder)
    paths = {*folder.rglob(ROW_FILE), *folder.glob("**/rows/*/*.json")}
    rows = [read_json("read_rows", path, dict[str, Any]) for path in sorted(paths)]
    if not rows:
        raise SchemaError(
            f"read_rows: expected {ROW_FILE} or rows/*/*.json below {str(folder)!r}, "
            "got none. Run `torchrl-vla profile` first."
        )
    return sorted(rows, key=lambda row: (row["policy"], row["created_at"]))


def tabulate_rows(rows: Iterable[Row]) -> list[dict[str, object]]:
    """Return one line per row: medians and 95th percentiles in ms, and the numerics.

    ``numerics`` compares a row with the one before of the same case: ``""`` for the
    first, else ``identical``, ``changed`` or ``not comparable``.
    """
    lines: list[dict[str, object]] = []
    before: dict[str, Row] = {}
    for row in rows:
        name = row["policy"]
        summary = row["step_timing_summary"]
        line: dict[str, object] = {
            "policy": name,
            "created_at": row["created_at"],
            "git_commit": (row["git_commit"] or "")[:10],
            "status": row["status"],
            "profile_mode": row["profile_mode"],
        }
        for phase in _PHASES:
            for kind in ("median", "p95"):
                value = summary.get(f"{phase}_s", {}).get(kind)
                ms = None if value is None else round(value * 1e3, 6)
                line[f"{phase}_ms_{kind}"] = ms
        line["peak_memory_mb"] = _peak(summary)
        line["numerics"] = _numerics(before.get(name), row)
        if row["status"] == "success":
            before[name] = row
        lines.append(line)
    return lines


def _peak(summary: Row) -> float | None:
    found = (summary[name] for name in _PEAKS if name in summary)
    peak = next(found, None)
    return None if peak is None else round(peak / 2**20, 1)


def _numerics(before: Row | None, row: Row) -> str:
    if before is None or row["status"] != "success":
        return ""
    try:
        return compare_profiles(before, row).numerics
    except SchemaError:  # the case itself was changed
        return "not comparable"


def snapshot_table(rows: Iterable[Row]) -> str:
    """Return a Markdown table of the newest row of each case.

    Batch size, median of an update in ms, and peak memory in MB: of the device, or on
    the CPU of the process.
    """
    newest = {row["policy"]: row for row in rows if row["status"] == "success"}
    lines = ["| policy | batch | update (ms) | peak memory (MB) |", "|---|---|---|---|"]
    for row, line in zip(newest.values(), tabulate_rows(newest.values()), strict=True):
        arguments = row["spec"]["train_args"]
        prefix = "batch_size="
        sizes = [a.removeprefix(prefix) for a in arguments if a.startswith(prefix)]
        update = line["total_update_ms_median"]
        lines.append(
            f"| {line['policy']} | {sizes[0] if sizes else ''} | "
            f"{'' if update is None else format(update, '.1f')} | "
            f"{line['peak_memory_mb']} |"
        )
    return "\n".join(lines) + "\n"


def write_profile_report(rows: Sequence[Row], path: Path | str) -> Path:
    """Write an HTML page of rows over time, and a CSV file of the same name.

    A dashed line marks where the outputs of a case changed.

    Args:
        rows: see :func:`read_rows`.
        path: of the page.
    """
    path = Path(path)
    lines = tabulate_rows(rows)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(lines[0]))
    writer.writeheader()
    writer.writerows(lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path.with_suffix(".csv"), text.getvalue())
    names = dict.fromkeys(str(line["policy"]) for line in lines)
    sections = [
        _section(name, [x for x in lines if x["policy"] == name]) for name in names
    ]
    write_text(path, html_page("Profiles", ["<h1>Profiles</h1>", *sections]))
    return path


def _section(name: str, lines: Sequence[Mapping[str, Any]]) -> str:
    parts = [f"<section><h2>{escape(name)}</h2>"]
    changed = [i for i, line in enumerate(lines) if line["numerics"] == "changed"]
    for i in changed:
        parts.append(
            f"<p><b>numerics changed</b> at {escape(lines[i]['git_commit'])} "
            f"({escape(lines[i]['created_at'])})</p>"
        )
    for phase in _PHASES:
        key = f"{phase}_ms_median"
        points = [(i, line[key]) for i, line in enumerate(lines) if line[key]]
        if len(points) > 1:
            parts.append(
                line_chart(
                    points,
                    x_label="run",
                    y_label=f"{phase} (ms)",
                    y_range=(0.0, 1.1 * max(y for _, y in points)),
                    height=160,
                    marks=changed,
                )
            )
    parts.append(
        row_table([{k: v for k, v in x.items() if k != "policy"} for x in lines])
    )
    return "".join([*parts, "</section>"])
