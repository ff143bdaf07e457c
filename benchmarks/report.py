"""Draw the ratios of all benchmark runs over time.

    python benchmarks/report.py        (make bench-report)

Reads ``benchmarks/history.jsonl``, to which every script appends a line per full run,
and writes ``runs/bench-report.html``. Runs of another machine or number of threads have
curves of their own: their ratios need not agree.
"""

from __future__ import annotations

import argparse
import json
from html import escape
from pathlib import Path

from contest import HISTORY

from torchrl_vla._internal.charts import line_chart
from torchrl_vla._internal.html_page import html_page, row_table

OUT = Path("runs") / "bench-report.html"


def read_history(path: Path) -> list[dict]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return sorted(map(json.loads, lines), key=lambda line: line["date"])


def group_by_row(lines: list[dict]) -> dict[tuple[str, ...], list[dict]]:
    """Return the runs of each row of a script, on each machine."""
    groups: dict[tuple[str, ...], list[dict]] = {}
    for line in lines:
        for row, ratio in line["ratios"].items():
            machine = f"{line['machine']}, {line['threads']} threads"
            key = (line["script"], row, ratio["baseline"], machine)
            groups.setdefault(key, []).append({**line, **ratio})
    return groups


def draw(title: tuple[str, ...], runs: list[dict]) -> str:
    script, row, baseline, machine = title
    head = f"<h2>{escape(row)}</h2><p class='quiet'>{escape(machine)}</p>"
    points = [(float(i), run["median"]) for i, run in enumerate(runs)]
    chart = ""
    if len(points) > 1:
        chart = line_chart(
            points,
            x_label=f"run of {script}",
            y_label=f"/ {baseline}",
            y_range=(0.0, 1.1 * max(run["median"] for run in runs)),
            height=160,
        )
    table = [
        {
            "date": run["date"],
            "commit": (run["commit"] or "")[:10],
            "torch": run["versions"]["torch"],
            "median": f"{run['median']:.2f}",
            "range": f"[{run['min']:.2f}, {run['max']:.2f}]",
            "rounds": run["rounds"],
        }
        for run in runs
    ]
    return f"<section>{head}{chart}{row_table(table)}</section>"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--history", type=Path, default=HISTORY)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    lines = read_history(given.history)
    if not lines:
        print(f"{given.history}: no runs yet; run a script without --quick")
        return
    groups = group_by_row(lines)
    sections = [draw(title, runs) for title, runs in sorted(groups.items())]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    page = html_page("Benchmarks", ["<h1>Benchmarks over time</h1>", *sections])
    given.out.write_text(page)
    print(f"{len(lines)} runs, {len(groups)} rows: {given.out}")


if __name__ == "__main__":
    main()
