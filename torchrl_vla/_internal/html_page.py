"""Parts of a self-contained HTML page: style, figures, tables."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape

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


def html_page(title: str, sections: Iterable[str]) -> str:
    """Return a page that needs no other file.

    Args:
        title: plain text.
        sections: HTML.

    Examples:
        >>> "<title>a &amp; b</title>" in html_page("a & b", ["<p>text</p>"])
        True
    """
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        + "".join(sections)
        + "</html>\n"
    )


def png_figure(caption: str, png: bytes) -> str:
    """Return a figure with a picture, which is inside the page, and its caption."""
    data = base64.b64encode(png).decode()
    text = escape(caption)
    return (
        f"<figure><img alt='{text}' src='data:image/png;base64,{data}'>"
        f"<figcaption class='quiet'>{text}</figcaption></figure>"
    )


def fact_table(facts: Mapping[str, object]) -> str:
    """Return a table of names and values."""
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    return f"<table>{rows}</table>"


def row_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return a table of rows with the same columns.

    Examples:
        >>> row_table([{"name": "x", "max": 1.0}])
        '<table><tr><th>name</th><th>max</th></tr><tr><td>x</td><td>1.0</td></tr></table>'
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    body = "".join(
        "<tr>"
        + "".join(f"<td>{escape(str(value))}</td>" for value in row.values())
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"
