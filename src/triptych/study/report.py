"""``report.html``: a study in one file that needs no account, no network and no script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from triptych.records import write_atomically
from triptych.study import markup
from triptych.study.cells import STATUSES, Record
from triptych.study.corruptions import corruption_table
from triptych.study.findings import findings_table
from triptych.study.panels import (
    Dashboard,
    ImagePanel,
    Section,
    Study,
    TablePanel,
    default_dashboard,
    load_study,
)
from triptych.study.report_parts import plot_panel, table_panel
from triptych.study.report_pictures import PictureBudget, image_panel, missing_pictures
from triptych.study.tables import differences_table, summary_table
from triptych.study.wording import LABELS, axis_rank, value_name

REPORT, SUMMARY, DIFFERENCES = "report.html", "summary.csv", "differences.csv"
FINDINGS = "findings.csv"
CORRUPTIONS = "corruptions.csv"


def build_report(
    records: Sequence[Record],
    folder: Path,
    title: str | None = None,
    *,
    missing: Sequence[str] | None = None,
) -> Path:
    """Write report.html, summary.csv and differences.csv of a study into ``folder``.

    Args:
        records: run records of one study; each run lies in ``folder``/runs/<cell>.
        folder: the study's folder.
        title: heading of the report; the study's name if None.
        missing: names of runs of the grid that have no record. If None, the seeds that only some
            of the cells have are taken for missing.

    Returns:
        The path of report.html. Each file is written whole or not at all.

    Raises:
        ValueError: the records are not of one study, or share labels but not configuration.
    """
    folder = Path(folder)
    study = load_study(records, folder, title)
    spec = default_dashboard(study)
    page = render_page(spec, study, missing_seeds(records) if missing is None else missing)
    write_atomically(folder / SUMMARY, summary_table(records).to_csv(index=False))
    write_atomically(folder / DIFFERENCES, differences_table(records).to_csv(index=False))
    findings = findings_table(records, folder)
    if len(findings):
        write_atomically(folder / FINDINGS, findings.to_csv(index=False))
    corruptions = corruption_table(records)
    if len(corruptions):
        write_atomically(folder / CORRUPTIONS, corruptions.to_csv(index=False))
    write_atomically(folder / REPORT, page)
    return folder / REPORT


def render_page(spec: Dashboard, study: Study, missing: Sequence[str] = ()) -> str:
    """The whole page as HTML; ``missing`` names runs that have no record."""
    budget = PictureBudget()
    body = [
        f"<h1>{escape(spec.title)}</h1>",
        headline(study),
        notices(study, missing),
        facts(study),
    ]
    body += [render_section(section, study, budget) for section in spec.sections]
    body.append(
        f'<footer class="note">The numbers behind this page: <a href="{SUMMARY}">{SUMMARY}</a> '
        f'(every metric of every cell) and <a href="{DIFFERENCES}">{DIFFERENCES}</a> '
        "(every paired comparison).</footer>"
    )
    template = files("triptych.study").joinpath("templates/report.html").read_text("utf-8")
    return Template(template).substitute(title=escape(spec.title), body="\n".join(body))


def render_section(section: Section, study: Study, budget: PictureBudget) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    if section.note:
        parts.append(markup.paragraph(section.note, "note"))
    images = [panel for panel in section.panels if isinstance(panel, ImagePanel)]
    plotted: list[str] = []
    for panel in section.panels:
        if isinstance(panel, TablePanel):
            parts += [*_grid(plotted), table_panel(panel, study)]
            plotted = []
        elif not isinstance(panel, ImagePanel):
            plotted.append(plot_panel(panel, study))
    return "\n".join([*parts, *_grid(plotted), *_by_seed(images, study, budget)])


def _grid(plotted: Sequence[str]) -> list[str]:
    if not plotted:
        return []
    return [f'<div class="plots">{"".join(plotted)}</div>' if len(plotted) > 1 else plotted[0]]


def _by_seed(images: Sequence[ImagePanel], study: Study, budget: PictureBudget) -> Iterable[str]:
    """Pictures of the first seed open, those of the others folded."""
    seeds = sorted({seed for cell in study.cells for seed in cell.records_by_seed})
    for position, seed in enumerate(seeds if images else ()):
        body = "\n".join(image_panel(panel, study, seed, budget) for panel in images)
        yield markup.details(f"Seed {seed}", body, is_open=position == 0)


def headline(study: Study) -> str:
    """What was compared, in one sentence."""
    values: dict[str, list[str]] = {}
    for label in LABELS:
        found = {str(record["labels"][label]) for record in study.records}
        values[label] = sorted(found, key=partial(axis_rank, label))
    names = {label: _listing(map(value_name, found)) for label, found in values.items()}
    seeds = len({record["labels"]["seed"] for record in study.records})
    text = (
        f"Compared: {names['norm']}; {names['pretrain']}. On {names['backbone']}, "
        f"{names['data']}, {names['task']}, with {seeds} seed{'s' if seeds != 1 else ''}."
    )
    return markup.paragraph(text, "lead")


def _listing(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def notices(study: Study, missing: Sequence[str]) -> str:
    """What a reader must know before the numbers: unfinished runs, and what could not be read."""
    counts = dict.fromkeys(STATUSES, 0)
    for record in study.records:
        counts[record["status"]] += 1
    lines = list(study.problems)
    lines += [f"Picture missing: {path}." for path in missing_pictures(study)]
    total = len(study.records) + len(missing)
    intro = ""
    if counts["done"] < total:
        open_ends = [f"{n} {status}" for status, n in counts.items() if n and status != "done"]
        open_ends += [f"{len(missing)} without a record"] if missing else []
        intro = (
            f"This study is not complete: {counts['done']} of {total} runs are done "
            f"({', '.join(open_ends)}). What follows is made from the done runs alone."
        )
        unfinished = [
            f"{record['status'].capitalize()}: {record['cell']}."
            for record in study.records
            if record["status"] != "done"
        ]
        lines = unfinished + [f"No record: {name}." for name in missing] + lines
    elif not lines:
        return ""
    return (
        f'<div class="notice" role="note">{markup.paragraph(intro) if intro else ""}'
        f"{markup.bullet_list(lines) if lines else ''}</div>"
    )


def missing_seeds(records: Sequence[Record]) -> list[str]:
    """Runs that would make the grid whole: for each cell, the seeds that only other cells have."""
    seeds = {int(record["labels"]["seed"]) for record in records}
    have: dict[tuple[str, ...], set[int]] = {}
    for record in records:
        key = tuple(str(record["labels"][label]) for label in LABELS)
        have.setdefault(key, set()).add(int(record["labels"]["seed"]))
    return [
        f"{' / '.join(key)}, seed {seed}"
        for key, found in have.items()
        for seed in sorted(seeds - found)
    ]


def agreed_facts(records: Sequence[Record]) -> dict[str, str]:
    """Seeds, hardware, versions and commit, and a warning where runs do not agree on them."""
    seeds = sorted({int(record["labels"]["seed"]) for record in records})
    runs = f"{sum(record['status'] == 'done' for record in records)} done of {len(records)}"
    rows = {
        "Runs": f"{runs}; seeds {', '.join(map(str, seeds))}",
        "Hardware": _agreed(_machine(record) for record in records),
        "Versions": _agreed(_versions(record) for record in records),
        "Commit": _agreed(_commit(record) for record in records),
    }
    dates = sorted(str(r[k]) for r in records for k in ("started", "finished") if r.get(k))
    if dates:
        ends = dict.fromkeys(date[:16].replace("T", " ") for date in (dates[0], dates[-1]))
        rows["Made"] = " to ".join(ends)
    return rows


def facts(study: Study) -> str:
    """:func:`agreed_facts` as HTML."""
    rows = agreed_facts(study.records)
    items = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in rows.items())
    return f'<dl class="facts">{items}</dl>'


def _agreed(texts: Iterable[str]) -> str:
    found = list(dict.fromkeys(text for text in texts if text))
    if not found:
        return "not recorded"
    if len(found) == 1:
        return found[0]
    return f"not the same in all runs, so compare times with care: {' | '.join(found)}"


def _machine(record: Record) -> str:
    machine = record.get("machine") or {}
    parts = [machine.get("gpu"), machine.get("cpu")]
    cores = [f"{machine['cores']} cores"] if machine.get("cores") else []
    return ", ".join([*(str(part) for part in parts if part), *cores])


def _versions(record: Record) -> str:
    return ", ".join(f"{name} {text}" for name, text in (record.get("versions") or {}).items())


def _commit(record: Record) -> str:
    git = record.get("git") or {}
    if not git.get("commit"):
        return ""
    return f"{git['commit'][:12]}{' with uncommitted changes' if git.get('dirty') else ''}"
