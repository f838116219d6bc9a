"""Small pieces of HTML: escaped text, tables, embedded figures and pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
}


def paragraph(text: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f"<p{attribute}>{escape(text)}</p>"


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Sequence[int] = (),
    wide: Sequence[int] = (),
) -> str:
    """A table of plain text; columns in ``numbers`` stand right, those in ``wide`` may wrap."""

    def kind(column: int) -> str:
        if column in numbers:
            return ' class="n"'
        return ' class="wide"' if column in wide else ""

    head = "".join(f"<th{kind(i)}>{escape(text)}</th>" for i, text in enumerate(header))
    body = "".join(
        f"<tr>{''.join(f'<td{kind(i)}>{escape(text)}</td>' for i, text in enumerate(row))}</tr>\n"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}'
        "</tbody></table></div>"
    )


def details(summary: str, body: str, *, is_open: bool = False) -> str:
    state = " open" if is_open else ""
    return f"<details{state}><summary>{escape(summary)}</summary>\n{body}\n</details>"


def bullet_list(items: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"


def figure(drawing: Figure, title: str) -> str:
    """A figure as an embedded SVG with its title; the same data give the same bytes."""
    stream = io.BytesIO()
    # Glyphs as paths look the same without the font; the salt makes the ids repeatable.
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": title}):
        drawing.savefig(stream, format="svg", metadata={"Date": None})
    source = data_uri(stream.getvalue(), "image/svg+xml")
    text = escape(title)
    return (
        f'<figure class="plot"><h3>{text}</h3>\n<img src="{source}" alt="{text}, plotted"></figure>'
    )


def data_uri(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def media_type(path: Path) -> str:
    """Media type of a picture file by its name; raises ValueError for what no browser draws."""
    kind = MEDIA_TYPES.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path.name} is no picture for a report; legal: {', '.join(MEDIA_TYPES)}")
    return kind
