from triptych.study.panels import (
    BarPanel,
    ImagePanel,
    LinePanel,
    ScatterPanel,
    TablePanel,
    curve_key,
    default_dashboard,
    load_study,
    picture_key,
    step_key,
)


def _panels(study, kind):
    spec = default_dashboard(study)
    return [p for section in spec.sections for p in section.panels if isinstance(p, kind)]


def test_default_dashboard_shows_all_that_the_study_has(records, write_study):
    study = load_study(records, write_study(records), "A title")
    spec = default_dashboard(study)
    assert spec.title == "A title"
    titles = [section.title for section in spec.sections]
    assert titles == ["Result", "Cost", "Learning curves", "Pictures", "Runs"]
    lines = [(panel.stage, panel.name) for panel in _panels(study, LinePanel)]
    assert lines == [("pretrain", "train/loss"), ("task", "val/accuracy"), ("task", "train/loss")]
    assert [panel.name for panel in _panels(study, ImagePanel)] == ["rollout", "grouping"]
    assert [(p.x, p.y) for p in _panels(study, ScatterPanel)] == [("time/total", "test/accuracy")]
    assert [panel.show for panel in _panels(study, BarPanel)] == ["values", "differences"]


def test_failures_are_listed_only_where_there_are_some(records, write_study):
    folder = write_study(records)
    tables = [panel.table for panel in _panels(load_study(records, folder), TablePanel)]
    assert "failures" not in tables
    records[0]["status"] = "failed"
    tables = [panel.table for panel in _panels(load_study(records, folder), TablePanel)]
    assert "failures" in tables


def test_a_study_without_results_shows_its_runs(records, tmp_path):
    for record in records:
        record["status"] = "running"
    spec = default_dashboard(load_study(records, tmp_path))
    assert spec.title == "compare"
    assert [section.title for section in spec.sections] == ["Runs"]
    assert spec.sections[0].note == "No run is done yet, so there is no result to show."


def test_every_setting_has_its_own_table(records, write_study):
    folder = write_study(records)
    for record in records:
        if record["labels"]["norm"] == "dtn":
            record["labels"]["data"] = "digits"
    study = load_study(records, folder)
    tables = [p.setting for p in _panels(study, TablePanel) if p.table == "comparison"]
    assert tables == [
        ("swin_nano", "digits", "classification"),
        ("swin_nano", "mnist_5k", "classification"),
    ]


def test_keys_of_a_mirror():
    assert curve_key("pretrain", "train/loss") == "pretrain/train/loss"
    assert (
        curve_key("task", "dtn/blocks.0.norm1/width/head0") == "dtn/task/blocks.0.norm1/width/head0"
    )
    assert step_key("task") == "task/step"
    assert picture_key("rollout") == "pictures/rollout"
