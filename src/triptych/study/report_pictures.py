"""Pictures of all cells of a study, side by side, seed by seed."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any
from urllib.parse import quote

from triptych.study import markup
from triptych.study.cells import Cell, Record, run_folder
from triptych.study.panels import ImagePanel, Study
from triptych.study.plots import cell_name

EMBEDDED_BYTES = 32 * 2**20


class PictureBudget:
    """How many bytes of pictures may still be embedded; the others are linked."""

    def __init__(self, limit: int = EMBEDDED_BYTES) -> None:
        self.left = limit

    def take(self, size: int) -> bool:
        """Whether a picture of this size still fits; if so it is counted."""
        if size > self.left:
            return False
        self.left -= size
        return True


def image_panel(panel: ImagePanel, study: Study, seed: int, budget: PictureBudget) -> str:
    """One picture of all cells of a setting for one seed; '' when no cell has that seed."""
    shown = [
        (cell, cell.records_by_seed.get(seed))
        for cell in study.cells
        if cell.setting == panel.setting
    ]
    if not any(record for _, record in shown):
        return ""
    pictures = [_find(record, panel.name) if record else None for _, record in shown]
    captions = {picture.get("caption") or "" for picture in pictures if picture}
    # A caption that all share is said once above, not under each picture.
    shared = captions.pop() if len(captions) == 1 else ""
    figures = [
        _figure(cell, record, picture, panel, study, budget, with_caption=not shared)
        for (cell, record), picture in zip(shown, pictures, strict=True)
    ]
    # A row for each norm, so that one pre-training is one column.
    columns = min(4, len({cell.pretrain for cell, _ in shown}))
    return (
        f"<h3>{escape(panel.title)}</h3>\n"
        + (markup.paragraph(shared, "note") if shared else "")
        + f'<div class="pictures" style="--columns: {columns}">{"".join(figures)}</div>'
    )


def _find(record: Record, name: str) -> Mapping[str, Any] | None:
    for picture in record.get("pictures") or ():
        if picture["name"] == name:
            return picture
    return None


def _why_not(record: Record, name: str) -> str:
    """Why a run has no such picture, as far as its record says."""
    for left_out in record.get("left_out", ()):
        if left_out["name"] == name:
            return f"Left out: {left_out['reason']}."
    return "Not made in this run."


def _figure(
    cell: Cell,
    record: Record | None,
    picture: Mapping[str, Any] | None,
    panel: ImagePanel,
    study: Study,
    budget: PictureBudget,
    *,
    with_caption: bool,
) -> str:
    name = escape(cell_name(cell))
    if record is None:
        text = "No done run with this seed."
        return f'<figure><div class="gap">{text}</div>{_caption(name)}</figure>'
    if picture is None:
        text = escape(_why_not(record, panel.name))
        return f'<figure><div class="gap">{text}</div>{_caption(name)}</figure>'
    path = run_folder(study.folder, record) / picture["file"]
    place = path.relative_to(study.folder).as_posix()
    numbers = ""
    if picture.get("numbers"):
        target = (run_folder(study.folder, record) / picture["numbers"]).relative_to(study.folder)
        numbers = f' <a href="{quote(target.as_posix())}">numbers</a>'
    caption = _caption(name, escape(picture.get("caption") or "") if with_caption else "", numbers)
    if not path.is_file():
        return f'<figure><div class="gap">File missing: {escape(place)}</div>{caption}</figure>'
    link = f'<a href="{quote(place)}">'
    if not budget.take(path.stat().st_size):
        text = "Not embedded, to keep this file small; open the picture."
        return f'<figure><div class="gap">{link}{text}</a></div>{caption}</figure>'
    source = markup.data_uri(path.read_bytes(), markup.media_type(path))
    alt = escape(f"{panel.title}: {cell_name(cell)}")
    return f'<figure>{link}<img src="{source}" alt="{alt}"></a>{caption}</figure>'


def _caption(name: str, text: str = "", numbers: str = "") -> str:
    return f"<figcaption><b>{name}</b>{f' {text}' if text else ''}{numbers}</figcaption>"


def missing_pictures(study: Study) -> list[str]:
    """Pictures that a record names but whose file is not there, as paths below the study."""
    return [
        path.relative_to(study.folder).as_posix()
        for cell in study.cells
        for record in cell.records_by_seed.values()
        for picture in record.get("pictures") or ()
        if not (path := run_folder(study.folder, record) / picture["file"]).is_file()
    ]
