"""HTML report of the demo: success rates with intervals, and clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from torchrl_vla._internal.charts import interval_chart, line_chart
from torchrl_vla._internal.durable_files import write_text
from torchrl_vla._internal.html_page import fact_table, html_page, png_figure
from torchrl_vla.evaluation import EvaluationResult


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
        clips = "".join(
            png_figure(caption, strip.read_bytes()) for caption, strip in strips.items()
        )
        sections.append(f"<section><h2>What it looks like</h2>{clips}</section>")
    sections.append(f"<section><h2>To repeat it</h2>{fact_table(facts)}</section>")
    write_text(path, html_page(title, sections))
    return path


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
