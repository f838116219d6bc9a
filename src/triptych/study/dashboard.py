"""The dashboard of :mod:`triptych.study.panels` as JSON, and as a W&B workspace.

``wandb-workspaces`` is optional: without it, or without an account, ``report.html`` shows the same
dashboard. A workspace draws from what the runs logged, so it needs them to be uploaded first
(``wandb sync``).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from triptych.study.outcome import study_records
from triptych.study.panels import (
    BarPanel,
    Dashboard,
    ImagePanel,
    LinePanel,
    Panel,
    ScatterPanel,
    TablePanel,
    curve_key,
    default_dashboard,
    load_study,
    picture_key,
    step_key,
)

GROUP_KEYS = ("norm.name", "pretrain.name")


class DashboardError(RuntimeError):
    """The W&B workspace cannot be made; the message is one sentence for the user."""


def dashboard_json(spec: Dashboard) -> str:
    """The dashboard as JSON text; each panel carries its kind."""
    sections = [
        {
            "title": section.title,
            "note": section.note,
            "panels": [{"kind": type(panel).__name__, **asdict(panel)} for panel in section.panels],
        }
        for section in spec.sections
    ]
    return json.dumps({"title": spec.title, "sections": sections}, indent=1, ensure_ascii=False)


def to_workspace(spec: Dashboard, entity: str, project: str) -> Any:
    """Translate the dashboard to a ``wandb_workspaces.workspaces.Workspace``; nothing is sent.

    Raises:
        DashboardError: wandb-workspaces is not installed.
    """
    workspaces, panels = _library()
    sections = []
    for section in spec.sections:
        translated = _without_repeats(section.panels, panels)
        if translated:
            sections.append(workspaces.Section(name=section.title, panels=translated, is_open=True))
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=spec.title,
        sections=sections,
        runset_settings=workspaces.RunsetSettings(
            groupby=[workspaces.Config(key) for key in GROUP_KEYS]
        ),
    )


def publish(folder: Path) -> str:
    """Publish the dashboard of the study in ``folder`` and return its address.

    Entity and project are those that the runs were logged to; the account's own entity where the
    configuration names none.

    Raises:
        DashboardError: there is nothing to publish, or as in :func:`publish_dashboard`.
    """
    records, _ = study_records(folder)
    if not records:
        raise DashboardError(f"{folder} holds no run record yet, so there is no dashboard to make.")
    spec = default_dashboard(load_study(records, folder))
    logger = records[0]["config"]["logger"]
    return publish_dashboard(spec, logger["project"], logger["entity"])


def publish_dashboard(spec: Dashboard, project: str, entity: str | None = None) -> str:
    """Save the dashboard as a W&B workspace view and return its address.

    Raises:
        DashboardError: wandb-workspaces is not installed, there is no account, or W&B refused.
    """
    _library()
    wandb = importlib.import_module("wandb")
    try:
        owner = entity or str(wandb.Api().default_entity)
        return str(to_workspace(spec, owner, project).save().url)
    except wandb.errors.UsageError as error:
        raise DashboardError(
            f"The dashboard of {project} was not saved, as there is no W&B account here: log in "
            "with `wandb login`, or open report.html, which shows the same panels."
        ) from error
    except wandb.errors.Error as error:
        raise DashboardError(f"W&B did not take the dashboard of {project}: {error}") from error


def _library() -> tuple[ModuleType, ModuleType]:
    try:
        return (
            importlib.import_module("wandb_workspaces.workspaces"),
            importlib.import_module("wandb_workspaces.reports.v2"),
        )
    except ModuleNotFoundError as error:
        raise DashboardError(
            "The W&B dashboard needs the package wandb-workspaces (pip install wandb-workspaces); "
            "report.html shows the same panels without it."
        ) from error


def _without_repeats(own: Sequence[Panel], panels: ModuleType) -> list[Any]:
    """Translated panels; those that differ in the setting alone are one in a workspace."""
    first_of_kind: dict[tuple[str, ...], Panel] = {}
    for panel in own:
        fields = {key: value for key, value in asdict(panel).items() if key != "setting"}
        first_of_kind.setdefault((type(panel).__name__, *map(str, fields.values())), panel)
    return [found for panel in first_of_kind.values() for found in _translate(panel, panels)]


def _translate(panel: Panel, panels: ModuleType) -> list[Any]:
    """The W&B panels that stand for one of ours; none where W&B has no like."""
    match panel:
        case LinePanel(title, stage, name, _):
            return [
                panels.LinePlot(
                    title=title,
                    x=step_key(stage),
                    y=[curve_key(stage, name)],
                    groupby_aggfunc="mean",
                    groupby_rangefunc="minmax",
                )
            ]
        case ScatterPanel(title, x, y, _):
            summary = panels.SummaryMetric
            return [panels.ScatterPlot(title=title, x=summary(x), y=summary(y))]
        case BarPanel(_, _, "differences"):
            return []  # W&B cannot pair seeds; the text panel says where the differences are
        case BarPanel(title, metric, _):
            return [
                panels.BarPlot(
                    title=title,
                    metrics=[metric],
                    groupby_aggfunc="mean",
                    groupby_rangefunc="stderr",
                )
            ]
        case ImagePanel(title, name, _):
            return [panels.MediaBrowser(title=title, media_keys=[picture_key(name)])]
        case TablePanel(_, "settings", _):
            return [panels.RunComparer(diff_only="split")]
        case TablePanel(title, "sentences" | "differences" as table, _):
            where = "report.html" if table == "sentences" else "differences.csv"
            text = f"**{title}**: paired over seeds, with intervals, in `{where}` of the study."
            return [panels.MarkdownPanel(markdown=text)]
        case TablePanel():
            return []
    raise TypeError(f"{type(panel).__name__} is no panel")
