"""SVG charts of a report, without a plotting package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import log10

_INK, _FAINT, _ACCENT, _MARK = "#1c2733", "#d5dbe1", "#0b6bcb", "#c62828"


def line_chart(
    points: Sequence[tuple[float, float]],
    *,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    width: int = 640,
    height: int = 260,
    marks: Sequence[float] = (),
) -> str:
    """Draw points as a line, ``x`` from 0 on, as SVG text.

    Args:
        points: ``(x, y)``, at least two, with increasing ``x >= 0``.
        x_label: what ``x`` counts.
        y_label: what ``y`` measures.
        y_range: of a linear axis; None = a logarithmic one that fits ``y > 0``.
        width: in pixels.
        height: in pixels.
        marks: values of ``x`` where something changed; each gets a dashed line.

    Raises:
        ValueError: fewer than two points, or a ``y`` that has no logarithm.

    Examples:
        >>> line_chart([(0, 1.0), (10, 0.1)], x_label="step", y_label="loss")[:4]
        '<svg'
    """
    is_log = y_range is None
    if len(points) < 2 or (is_log and any(y <= 0 for _, y in points)):
        raise ValueError(
            "line_chart: expected at least two points, with y > 0 unless there is a "
            f"y_range, got {list(points)[:5]}."
        )
    left, right, top, bottom = 72, 24, 12, 40
    x_low, x_high = 0.0, points[-1][0]
    heights = [log10(y) if is_log else y for _, y in points]
    y_low, y_high = (min(heights), max(heights)) if y_range is None else y_range
    y_high = max(y_high, y_low + 1e-3)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / max(x_high - x_low, 1e-9)
        up = (y - y_low) / (y_high - y_low)
        return (
            left + across * (width - left - right),
            height - bottom - up * (height - top - bottom),
        )

    parts = []
    for i in range(5):
        value = y_low + (y_high - y_low) * i / 4
        x_start, y = place(x_low, value)
        parts.append(
            f'<line x1="{x_start:.1f}" x2="{width - right}" y1="{y:.1f}" '
            f'y2="{y:.1f}" stroke="{_FAINT}"/>'
            f'<text x="{x_start - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">'
            f"{10**value if is_log else value:.3g}</text>"
        )
        x_value = x_low + (x_high - x_low) * i / 4
        x, y_axis = place(x_value, y_low)
        parts.append(
            f'<text x="{x:.1f}" y="{y_axis + 16:.1f}" text-anchor="middle">'
            f"{x_value:.0f}</text>"
        )
    for mark in marks:
        x, low = place(mark, y_low)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{low:.1f}" '
            f'stroke="{_MARK}" stroke-width="2" stroke-dasharray="4 3"/>'
        )
    path = " ".join(
        f"{x:.1f},{y:.1f}"
        for x, y in (place(x, up) for (x, _), up in zip(points, heights, strict=True))
    )
    parts.append(
        f'<polyline points="{path}" fill="none" stroke="{_ACCENT}" stroke-width="2"/>'
    )
    parts.append(
        f'<text x="{(left + width - right) / 2}" y="{height - 6}" '
        f'text-anchor="middle">{escape(x_label)}</text>'
        f'<text x="14" y="{height / 2}" text-anchor="middle" '
        f'transform="rotate(-90 14 {height / 2})">{escape(y_label)}</text>'
    )
    return _svg(width, height, parts)


def interval_chart(
    rows: Mapping[str, tuple[float, float, float]], *, width: int = 640
) -> str:
    """Draw success rates with their intervals, one row each, as SVG text.

    Args:
        rows: name to ``(rate, low, high)``, each in ``[0, 1]``.
        width: in pixels.

    Examples:
        >>> "95 %" in interval_chart({"after": (0.95, 0.88, 0.98)})
        True
    """
    left, right, row_height, top = 200, 70, 30, 8
    height = top + row_height * len(rows) + 26
    scale = width - left - right
    parts = []
    for percent in (0, 25, 50, 75, 100):
        x = left + scale * percent / 100
        parts.append(
            f'<line x1="{x}" x2="{x}" y1="{top}" y2="{height - 22}" '
            f'stroke="{_FAINT}"/><text x="{x}" y="{height - 6}" '
            f'text-anchor="middle">{percent} %</text>'
        )
    for i, (name, (rate, low, high)) in enumerate(rows.items()):
        y = top + row_height * (i + 0.5)
        parts.append(
            f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(name)}</text>'
            f'<line x1="{left + scale * low:.1f}" x2="{left + scale * high:.1f}" '
            f'y1="{y}" y2="{y}" stroke="{_ACCENT}" stroke-width="6" opacity="0.35" '
            'stroke-linecap="round"/>'
            f'<circle cx="{left + scale * rate:.1f}" cy="{y}" r="5" fill="{_ACCENT}"/>'
            f'<text x="{width - right + 12}" y="{y + 4}">{100 * rate:.0f} %</text>'
        )
    return _svg(width, height, parts)


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" font-family="system-ui, sans-serif" font-size="12" '
        f'fill="{_INK}">' + "".join(parts) + "</svg>"
    )
