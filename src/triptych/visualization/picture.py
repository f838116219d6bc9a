"""A finished picture with its numbers, and how pictures get onto disk."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from triptych.visualization.style import DPI, STAMP

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


@dataclass(frozen=True)
class Picture:
    """A figure and the table that it was drawn from.

    Attributes:
        name: file name without its ending: small letters, digits, "-" and "_".
        title: a few words for a heading.
        caption: what is shown, in which units, and how to read it.
        figure: drawn without pyplot.
        rows: the numbers; every row has the same keys.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    rows: list[dict[str, object]]

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"picture name {self.name!r} is no file name; "
                "use small letters, digits, '-' and '_'"
            )
        if not self.rows:
            raise ValueError(f"picture {self.name!r} has no numbers; give at least one row")


def annotated(picture: Picture, remark: str, stamp: str = "") -> Picture:
    """``picture`` with ``remark`` after its caption, and ``stamp`` in a corner of the figure."""
    if stamp:
        picture.figure.text(
            0.006,
            0.994,
            stamp,
            ha="left",
            va="top",
            fontsize=8,
            color=STAMP,
            fontweight="bold",
            in_layout=False,
        )
    return replace(picture, caption=f"{picture.caption} {remark}".strip())


def save_pictures(pictures: Sequence[Picture], folder: Path | str) -> list[dict[str, str]]:
    """Write NAME.png and NAME.csv of each picture into ``folder``, each whole or not at all.

    Returns:
        The entries of a run record; their paths are relative to the parent of ``folder``.

    Raises:
        ValueError: two pictures of one name.
    """
    folder = Path(folder)
    names = [picture.name for picture in pictures]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two pictures are named {twice[0]!r}; give each a name of its own")
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for picture in pictures:
        image, table = folder / f"{picture.name}.png", folder / f"{picture.name}.csv"
        _write_whole(image, partial(_write_png, picture))
        _write_whole(table, partial(_write_csv, picture))
        entries.append(
            {
                "name": picture.name,
                "title": picture.title,
                "file": f"{folder.name}/{image.name}",
                "numbers": f"{folder.name}/{table.name}",
                "caption": picture.caption,
            }
        )
    return entries


def _write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside ``path`` and rename, so that a reader never meets half a file."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _write_png(picture: Picture, path: Path) -> None:
    # Figure.savefig draws twice, first without ink for a size that is known here; this is a third
    # quicker and gives the same pixels. No date or version: the same picture, the same bytes.
    picture.figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(picture.figure)
    canvas.draw()
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(path, format="png")


def _write_csv(picture: Picture, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(picture.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(picture.rows)
