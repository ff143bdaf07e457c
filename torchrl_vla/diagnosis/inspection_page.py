"""HTML page of an inspection: facts, problems, sample frames and action curves."""

from __future__ import annotations

from html import escape
from pathlib import Path

from torchrl_vla._internal.charts import line_chart
from torchrl_vla._internal.durable_files import write_text
from torchrl_vla._internal.html_page import (
    fact_table,
    html_page,
    png_figure,
    row_table,
)
from torchrl_vla.diagnosis.inspection import Inspection
from torchrl_vla.evaluation.video_export import encode_png


def write_inspection(path: Path | str, inspection: Inspection) -> Path:
    """Write a self-contained page: images and charts are inside the file.

    Args:
        path: the HTML file to write.
        inspection: what it shows.
    """
    title = f"{inspection.kind}: {Path(inspection.path).name}"
    sections = [
        f"<h1>{escape(title)}</h1>",
        f"<section><h2>Problems</h2>{_problems(inspection)}</section>",
        f"<section><h2>Facts</h2>{fact_table(inspection.facts)}</section>",
    ]
    if inspection.pictures:
        figures = "".join(
            png_figure(caption, encode_png(image))
            for caption, image in inspection.pictures.items()
        )
        sections.append(f"<section><h2>Sample frames</h2>{figures}</section>")
    if inspection.curves:
        charts = "".join(
            f"<figure>{_chart(name, points)}</figure>"
            for name, points in inspection.curves.items()
        )
        sections.append(f"<section><h2>Curves</h2>{charts}</section>")
    for name, rows in inspection.tables.items():
        if rows:
            heading = escape(name.capitalize())
            sections.append(f"<section><h2>{heading}</h2>{row_table(rows)}</section>")
    path = Path(path)
    write_text(path, html_page(title, sections))
    return path


def _problems(inspection: Inspection) -> str:
    if not inspection.problems:
        return "<p>No problem was found.</p>"
    items = "".join(f"<li>{escape(str(p))}</li>" for p in inspection.problems)
    return f"<ul>{items}</ul>"


def _chart(name: str, points: object) -> str:
    heights = [y for _, y in points]  # type: ignore[attr-defined]
    return line_chart(
        points,  # type: ignore[arg-type]
        x_label="step",
        y_label=name,
        y_range=(min(heights), max(heights)),
        height=160,
    )
