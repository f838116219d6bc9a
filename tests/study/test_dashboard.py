import json
import sys
import types
from types import SimpleNamespace

import pytest

from triptych.study.dashboard import (
    DashboardError,
    dashboard_json,
    publish,
    publish_dashboard,
    to_workspace,
)
from triptych.study.panels import Dashboard, Section, default_dashboard, load_study


class Recorded:
    """Stands for a class of wandb_workspaces: keeps what it was made with."""

    def __init__(self, kind, *args, **fields):
        self.kind, self.args = kind, args
        self.__dict__.update(fields)

    def save(self):
        return SimpleNamespace(url=f"saved:{self.entity}/{self.project}")


class RecordingModule(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **fields: Recorded(name, *args, **fields)


@pytest.fixture
def library(monkeypatch):
    for name in ("", ".workspaces", ".reports", ".reports.v2"):
        full = f"wandb_workspaces{name}"
        monkeypatch.setitem(sys.modules, full, RecordingModule(full))


@pytest.fixture
def spec(records, write_study):
    return default_dashboard(load_study(records, write_study(records)))


def test_json_holds_every_panel_with_its_kind(spec):
    data = json.loads(dashboard_json(spec))
    assert [section["title"] for section in data["sections"]] == [s.title for s in spec.sections]
    panels = [panel for section in data["sections"] for panel in section["panels"]]
    assert len(panels) == sum(len(section.panels) for section in spec.sections)
    line = next(panel for panel in panels if panel["kind"] == "LinePanel")
    assert line == {
        "kind": "LinePanel",
        "title": "Pre-training: train loss",
        "stage": "pretrain",
        "name": "train/loss",
        "setting": ["swin_nano", "mnist_5k", "classification"],
    }


@pytest.mark.usefixtures("library")
def test_workspace_names_what_the_mirror_logs(spec):
    workspace = to_workspace(spec, "me", "triptych")
    assert (workspace.entity, workspace.project, workspace.name) == ("me", "triptych", "compare")
    by_kind = {}
    for section in workspace.sections:
        for panel in section.panels:
            by_kind.setdefault(panel.kind, []).append(panel)
    lines = [(panel.x, panel.y) for panel in by_kind["LinePlot"]]
    assert ("pretrain/step", ["pretrain/train/loss"]) in lines
    assert ("task/step", ["task/val/accuracy"]) in lines
    assert [panel.media_keys for panel in by_kind["MediaBrowser"]] == [
        ["pictures/rollout"],
        ["pictures/grouping"],
    ]
    scatter = by_kind["ScatterPlot"][0]
    assert (scatter.x.args, scatter.y.args) == (("time/total",), ("test/accuracy",))
    assert [panel.metrics for panel in by_kind["BarPlot"]] == [["test/accuracy"]]
    groups = [key.args[0] for key in workspace.runset_settings.groupby]
    assert groups == ["norm.name", "pretrain.name"]


@pytest.mark.usefixtures("library")
def test_panels_of_two_settings_are_one_in_a_workspace(records, write_study):
    folder = write_study(records)
    for record in records:
        if record["labels"]["norm"] == "dtn":
            record["labels"]["data"] = "digits"
    spec = default_dashboard(load_study(records, folder))
    workspace = to_workspace(spec, "me", "triptych")
    curves = next(section for section in workspace.sections if section.name == "Learning curves")
    keys = [panel.y[0] for panel in curves.panels]
    assert sorted(keys) == ["pretrain/train/loss", "task/train/loss", "task/val/accuracy"]


def test_without_the_package_one_sentence_says_so(spec, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(DashboardError, match=r"pip install wandb-workspaces\); report\.html"):
        to_workspace(spec, "me", "triptych")


@pytest.mark.usefixtures("library")
def test_without_an_account_one_sentence_says_so(spec, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def refuse():
        raise wandb.errors.UsageError("No API key configured")

    monkeypatch.setattr(wandb, "Api", refuse)
    with pytest.raises(DashboardError, match=r"no W&B account here: log in with `wandb login`"):
        publish_dashboard(spec, "triptych")


@pytest.mark.usefixtures("library")
def test_a_refusal_is_passed_on(spec, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def refuse(self):
        raise wandb.errors.CommError("permission denied")

    monkeypatch.setattr(Recorded, "save", refuse)
    message = "W&B did not take the dashboard of triptych: permission denied"
    with pytest.raises(DashboardError, match=message):
        publish_dashboard(spec, "triptych", "me")


@pytest.mark.usefixtures("library")
def test_publish_reads_the_study_from_its_folder(records, write_study):
    folder = write_study(records)
    for record in records:
        record["config"]["logger"]["entity"] = "me"
        (folder / "runs" / record["cell"] / "record.json").write_text(json.dumps(record))
    from triptych.study.processes import MANIFEST

    cells = {"cells": [record["cell"] for record in records]}
    (folder / MANIFEST).write_text(json.dumps(cells))
    assert publish(folder) == "saved:me/triptych"
    (folder / MANIFEST).write_text(json.dumps({"cells": ["nothing-yet"]}))
    with pytest.raises(DashboardError, match="holds no run record yet"):
        publish(folder)


def test_something_that_is_no_panel_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", RecordingModule("wandb_workspaces"))
    for name in ("wandb_workspaces.workspaces", "wandb_workspaces.reports.v2"):
        monkeypatch.setitem(sys.modules, name, RecordingModule(name))
    section = Section("odd", (Section("inner", ()),))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Section is no panel"):
        to_workspace(Dashboard("odd", (section,)), "me", "triptych")
