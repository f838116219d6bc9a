"""Panels of a study as HTML: tables, sentences, plots and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from triptych.study import markup, plots, statistics
from triptych.study.cells import (
    Cell,
    Setting,
    all_metrics,
    by_setting,
    differing_keys,
    headline_metric,
)
from triptych.study.comparisons import (
    Comparison,
    compare_cells,
    comparison_label,
    difference_sentence,
    headline_comparisons,
)
from triptych.study.corruptions import corruption_html
from triptych.study.findings import findings_html
from triptych.study.panels import BarPanel, LinePanel, Panel, ScatterPanel, Study, TablePanel
from triptych.study.tables import COST_METRICS, mean_text
from triptych.study.wording import (
    METRIC_NOTES,
    format_change,
    format_duration,
    format_p,
    format_range,
    measured_once,
    metric_name,
    setting_name,
    value_name,
)


def setting_cells(study: Study, setting: Setting | None) -> list[Cell]:
    return [cell for cell in study.cells if setting is None or cell.setting == setting]


def table_panel(panel: TablePanel, study: Study) -> str:
    """The table of the panel, under its title."""
    cells = setting_cells(study, panel.setting)
    title = f"<h3>{escape(panel.title)}</h3>\n"
    match panel.table:
        case "comparison":
            return title + comparison_table(cells)
        case "findings":
            return title + findings_html(study.records, study.folder, cells)
        case "corruptions":
            return title + corruption_html(study.records, cells)
        case "cost":
            return title + cost_table(cells)
        case "sentences":
            return title + sentences(cells)
        case "differences":
            return markup.details(panel.title, all_differences(cells))
        case "settings":
            return title + settings_table(cells)
        case "failures":
            return title + failures(study)
        case "runs":
            return markup.details(panel.title, runs_table(study), is_open=len(study.records) <= 40)


def comparison_table(cells: Sequence[Cell]) -> str:
    """Cells of one setting: headline metric with its interval, seeds, and what it cost."""
    metric = headline_metric(cells)
    header = ["norm", "pre-training", metric_name(metric), "seeds"]
    rows = [
        [
            value_name(cell.norm),
            value_name(cell.pretrain),
            mean_text(cell, metric),
            str(len(cell.values(metric))),
            *(mean_text(cell, cost) for cost in COST_METRICS),
        ]
        for cell in cells
    ]
    header += [metric_name(cost) for cost in COST_METRICS]
    return markup.table(header, rows, numbers=range(2, len(header)))


def cost_table(cells: Sequence[Cell]) -> str:
    """Every ``cost/`` and ``time/`` metric, one row a metric, and how it is measured."""
    metrics = [name for name in all_metrics(cells) if name.startswith(("cost/", "time/"))]
    if not metrics:
        return markup.paragraph("No run measured its cost.", "note")
    header = ["", *(plots.cell_name(cell) for cell in cells)]
    rows = [_cost_row(name, cells) for name in metrics]
    notes = [
        f"{metric_name(name)}: {METRIC_NOTES[name]}." for name in metrics if name in METRIC_NOTES
    ]
    numbers = range(1, len(header))
    return markup.table(header, rows, numbers=numbers) + (
        markup.details("How measured", markup.bullet_list(notes)) if notes else ""
    )


def _cost_row(metric: str, cells: Sequence[Cell]) -> list[str]:
    """The metric of every cell; its unit stands once in front, but for times."""
    unit = next(cell.unit(metric) for cell in cells if metric in cell.metrics)
    texts = [mean_text(cell, metric) for cell in cells]
    if unit in ("s", "count", "fraction"):
        return [metric_name(metric), *texts]
    name = f"{metric_name(metric)} ({unit})"
    return [name, *(text.removesuffix(unit).rstrip() for text in texts)]


def sentences(cells: Sequence[Cell]) -> str:
    """The differences in the headline metric, in words, grouped by setting."""
    items = headline_comparisons(cells)
    if not items:
        return markup.paragraph("There are no two cells that differ in one label alone.", "note")
    parts = []
    for setting in by_setting(cells):
        group = [item for item in items if item.first.setting == item.second.setting == setting]
        if group:
            parts.append(markup.paragraph(setting_name(setting), "note") + _findings(group))
    across = [item for item in items if item.axis == "backbone"]
    if across:
        parts.append(markup.paragraph("Between backbones", "note") + _findings(across))
    return "\n".join(parts)


def _findings(items: Sequence[Comparison]) -> str:
    lines = []
    for item in items:
        found = item.result.verdict in (statistics.HIGHER, statistics.LOWER)
        text = escape(difference_sentence(item))
        verdict = escape(item.result.verdict)
        before, _, after = text.rpartition(verdict)
        marked = f'{before}<span class="verdict">{verdict}</span>{after}'
        lines.append(f'<li class="{"found" if found else "none"}">{marked}</li>')
    return f'<ul class="findings">{"".join(lines)}</ul>'


def all_differences(cells: Sequence[Cell]) -> str:
    """Comparisons of every metric that varies with the seed; costs have a table of their own."""
    items = [item for item in compare_cells(cells) if not measured_once(item.metric)]
    with_setting = len({cell.setting for cell in cells}) > 1
    header = [
        "metric",
        "comparison",
        "difference",
        "95 % interval",
        "seeds",
        "p",
        "Holm p",
        "verdict",
    ]
    rows = []
    for item in items:
        result = item.result
        where = (
            f" · {setting_name(item.first.setting)}"
            if with_setting and item.axis != "backbone"
            else ""
        )
        bare = result.ci_low != result.ci_low  # NaN: no interval
        ends = "–" if bare else format_range(result.ci_low, result.ci_high, item.unit)
        rows.append(
            [
                metric_name(item.metric),
                comparison_label(item) + where,
                format_change(result.difference, item.unit),
                ends,
                str(result.n_seeds),
                format_p(result.p_value),
                format_p(item.p_holm),
                result.verdict,
            ]
        )
    return markup.table(header, rows, numbers=range(2, 7))


def settings_table(cells: Sequence[Cell]) -> str:
    """Configuration keys that are not the same in all cells: what else differs than the labels."""
    records = [next(iter(cell.records_by_seed.values())) for cell in cells]
    differing = differing_keys(records)
    if not differing:
        return markup.paragraph("None: the cells have one configuration.", "note")
    rows = [[path, ", ".join(values)] for path, values in differing.items()]
    return markup.table(["key", "values"], rows, wide=[1])


def failures(study: Study) -> str:
    failed = [record for record in study.records if record["status"] == "failed"]
    return "\n".join(
        f"<p><b>{escape(record['cell'])}</b></p>\n"
        f"<pre>{escape(record.get('message') or 'The record holds no message.')}</pre>"
        for record in failed
    )


def runs_table(study: Study) -> str:
    """Every record with its status, when it started and how long its stages took."""
    rows = []
    for record in sorted(study.records, key=lambda record: record["cell"]):
        timings = record.get("timings") or {}
        spent = format_duration(sum(timings.values())) if timings else "–"
        started = (record.get("started") or "–").replace("T", " ")[:19]
        status = escape(record["status"])
        rows.append(
            f'<tr><td class="wide">{escape(record["cell"])}</td>'
            f'<td class="status {status}">{status}</td>'
            f'<td>{escape(started)}</td><td class="n">{escape(spent)}</td></tr>'
        )
    head = '<th>run</th><th>status</th><th>started</th><th class="n">time in stages</th>'
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def plot_panel(panel: Panel, study: Study) -> str:
    """A line, scatter or bar panel as an embedded figure, or a sentence where there is nothing."""
    try:
        match panel:
            case LinePanel(title, stage, name, setting):
                cells = setting_cells(study, setting)
                drawing = plots.learning_curves(cells, study.curves, stage, name)
            case ScatterPanel(title, x, y, setting):
                drawing = plots.scatter(setting_cells(study, setting), x, y)
            case BarPanel(title, metric, "differences"):
                items = [item for item in compare_cells(study.cells) if item.metric == metric]
                drawing = plots.differences(items)
            case BarPanel(title, metric, _):
                drawing = plots.values(study.cells, metric)
            case _:
                raise TypeError(f"{type(panel).__name__} is no plot")
    except ValueError as error:
        return (
            f"<div><h3>{escape(panel.title)}</h3>{markup.paragraph(f'Not drawn: {error}.')}</div>"
        )
    return markup.figure(drawing, title)
