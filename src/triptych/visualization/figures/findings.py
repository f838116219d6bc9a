"""The findings as a sheet: statement, verdict, number against its bound."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from triptych.visualization.findings_table import number_text
from triptych.visualization.style import NEUTRAL, new_figure, styled

Row = Mapping[str, object]
VERDICT_COLOURS = {
    "holds": "#0072B2",
    "holds also untrained": "#7B9FC4",
    "does not hold": "#D55E00",
    "cannot be asked": "#8A8A8A",
}
_LINE = 0.185
_WRAP = 62
# Left edges in inches: number, statement and quantity, verdict, value, untrained, wanted, paper.
_COLUMNS = (0.1, 0.5, 5.0, 6.5, 8.85, 9.7, 10.45)
_WIDTH = 13.9


@styled
def findings_figure(rows: Sequence[Row], *, title: str = "") -> Figure:
    """One block for each finding of `finding_rows`: the statement, and a line for each check."""
    blocks: dict[str, list[Row]] = {}
    for row in rows:
        blocks.setdefault(str(row["finding"]), []).append(row)
    height = 0.75 + sum(_tall(block) for block in blocks.values())
    figure = new_figure(_WIDTH, height)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.set_xlim(0, _WIDTH)
    axes.set_ylim(height, 0)
    axes.text(_WIDTH / 2, 0.1, title, ha="center", va="top", fontsize=11)
    heads = ("", "statement and number", "verdict", "mean (95 % interval)", "untrained", "wanted",
             "paper (ViT-B/16)")  # fmt: skip
    for left, head in zip(_COLUMNS, heads, strict=True):
        axes.text(left, 0.55, head, va="bottom", fontsize=8, color=NEUTRAL)
    top = 0.65
    for block in blocks.values():
        _block(axes, block, top)
        top += _tall(block)
    return figure


def _lines(block: Sequence[Row]) -> list[tuple[Row, list[str]]]:
    """The lines of text of each check."""
    checks = [row for row in block if row["check"]]
    return [(row, textwrap.wrap(str(row["quantity"]), _WRAP)) for row in checks]


def _reason(block: Sequence[Row]) -> list[str]:
    reasons = dict.fromkeys(str(row["reason"]) for row in block if row["reason"])
    return [line for reason in reasons for line in textwrap.wrap(f"({reason})", _WRAP)]


def _tall(block: Sequence[Row]) -> float:
    lines = len(textwrap.wrap(str(block[0]["statement"]), _WRAP))
    lines += sum(len(texts) for _, texts in _lines(block)) + len(_reason(block))
    return lines * _LINE + 0.16


def _block(axes: Axes, block: Sequence[Row], top: float) -> None:
    first = block[0]
    axes.plot([0.1, _WIDTH - 0.1], [top, top], color="#DDDDDD", linewidth=0.6)
    at = top + 0.05
    verdict = str(first["verdict"])
    axes.text(_COLUMNS[0], at, str(first["finding"]), va="top", fontweight="bold")
    axes.text(_COLUMNS[2], at, verdict, va="top", color=VERDICT_COLOURS[verdict],
              fontweight="bold", fontsize=8)  # fmt: skip
    for line in textwrap.wrap(str(first["statement"]), _WRAP):
        axes.text(_COLUMNS[1], at, line, va="top", fontsize=8.5)
        at += _LINE
    for row, texts in _lines(block):
        found = number_text(row["value"])
        ends = number_text(row["ci_low"]), number_text(row["ci_high"])
        interval = f"{found} ({ends[0]} to {ends[1]})" if ends[0] != ends[1] else found
        colour = VERDICT_COLOURS[str(row["met"])]
        untrained = number_text(row["untrained"])
        for column, text in ((3, interval), (4, untrained), (5, str(row["wanted"]))):
            shade = NEUTRAL if column == 4 else colour
            axes.text(_COLUMNS[column], at, text, va="top", fontsize=8, color=shade)
        axes.text(_COLUMNS[6], at, "\n".join(textwrap.wrap(str(row["reference"]), 46)[:2]),
                  va="top", fontsize=7.5, color=NEUTRAL)  # fmt: skip
        for line in texts:
            axes.text(_COLUMNS[1] + 0.15, at, line, va="top", fontsize=8, color=NEUTRAL)
            at += _LINE
    for line in _reason(block):
        axes.text(_COLUMNS[1] + 0.15, at, line, va="top", fontsize=8, style="italic",
                  color=NEUTRAL)  # fmt: skip
        at += _LINE
