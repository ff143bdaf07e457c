"""HTML report of the demo: success rates with intervals, and clips."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from torchrl_vla._internal.durable_files import write_text
from torchrl_vla.evaluation import EvaluationResult
from torchrl_vla.recipes.demo.charts import interval_chart, line_chart

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2733; background: #f6f8fa;
       max-width: 760px; margin: 2rem auto; padding: 0 1rem; }
section { background: #fff; border: 1px solid #d5dbe1; border-radius: 8px;
          padding: 1rem 1.5rem; margin: 1rem 0; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
td, th { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #e6eaee; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
img, svg { max-width: 100%; height: auto; }
figure { margin: .8rem 0; }
.headline { font-size: 2.2rem; font-weight: 650; color: #0b6bcb; }
.quiet { color: #5b6875; font-size: .9rem; }
"""


def write_report(
    path: Path,
    *,
    title: str,
    summary: str,
    results: Mapping[str, EvaluationResult],
    meanings: Mapping[str, str],
    losses: Sequence[tuple[int, float]],
    strips: Mapping[str, Path],
    facts: Mapping[str, str],
    improvement: Sequence[tuple[int, float]] = (),
    verdict: str = "",
) -> Path:
    """Write a self-contained page (images and charts are inside the file).

    Args:
        path: the HTML file to write.
        title: the page's heading.
        summary: one sentence under it.
        results: name of each evaluation to its result; ``"after"`` is the headline.
        meanings: name to one sentence on what that evaluation shows.
        losses: ``(step, loss)`` of the training.
        strips: caption to PNG clip strip.
        facts: what a reader needs to repeat it: seeds, sizes, times.
        improvement: ``(iteration, success rate)`` of the reinforcement learning.
        verdict: what came of that, in one sentence.

    Returns:
        ``path``.
    """
    after = results["after"]
    low, high = after.interval
    rows = {name: (r.success_rate, *r.interval) for name, r in results.items()}
    sections = [
        f"<h1>{escape(title)}</h1><p>{escape(summary)}</p>",
        f"<section><h2>Success after training</h2><div class='headline'>"
        f"{100 * after.success_rate:.1f} %</div><p class='quiet'>95 % Wilson interval "
        f"{100 * low:.1f} to {100 * high:.1f} % over {len(after)} episodes that "
        f"training never saw.</p>{interval_chart(rows)}"
        + _definitions(meanings)
        + "</section>",
        "<section><h2>Success by instruction</h2>"
        f"{_instruction_table(results)}</section>",
    ]
    if len(losses) > 1:
        chart = line_chart(losses, x_label="training step", y_label="loss")
        sections.append(f"<section><h2>Cloning</h2>{chart}</section>")
    if len(improvement) > 1:
        chart = line_chart(
            [(iteration, 100 * rate) for iteration, rate in improvement],
            x_label="iteration",
            y_label="success, %",
            y_range=(0.0, 100.0),
        )
        sections.append(
            "<section><h2>Reinforcement learning</h2>"
            f"<p class='quiet'>{escape(verdict)}</p>{chart}</section>"
        )
    if strips:
        clips = "".join(_figure(*strip) for strip in strips.items())
        sections.append(f"<section><h2>What it looks like</h2>{clips}</section>")
    fact_rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in facts.items()
    )
    sections.append(
        f"<section><h2>To repeat it</h2><table>{fact_rows}</table></section>"
    )
    write_text(
        path,
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        + "".join(sections)
        + "</html>\n",
    )
    return path


def _figure(caption: str, strip: Path) -> str:
    data = base64.b64encode(strip.read_bytes()).decode()
    text = escape(caption)
    return (
        f"<figure><img alt='{text}' src='data:image/png;base64,{data}'>"
        f"<figcaption class='quiet'>{text}</figcaption></figure>"
    )


def _definitions(meanings: Mapping[str, str]) -> str:
    items = "".join(
        f"<li><b>{escape(name)}</b>: {escape(text)}</li>"
        for name, text in meanings.items()
    )
    return f"<ul class='quiet'>{items}</ul>"


def _instruction_table(results: Mapping[str, EvaluationResult]) -> str:
    """One row per instruction, one column per evaluation."""
    parts = {name: result.by_instruction() for name, result in results.items()}
    instructions = sorted({text for part in parts.values() for text in part})
    head = "".join(f"<th class='n'>{escape(name)}</th>" for name in results)
    body = ""
    for text in instructions:
        cells = "".join(
            f"<td class='n'>{_count(part, text)}</td>" for part in parts.values()
        )
        body += f"<tr><td>{escape(text)}</td>{cells}</tr>"
    return f"<table><tr><th>instruction</th>{head}</tr>{body}</table>"


def _count(part: Mapping[str, EvaluationResult], instruction: str) -> str:
    result = part.get(instruction)
    return f"{result.successes}/{len(result)}" if result else "not met"
