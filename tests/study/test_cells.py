import json
import math

import pytest

from triptych.study.cells import curves_table, group_cells, read_curves, total_seconds


def test_cells_are_the_labels_without_the_seed_baselines_first(records):
    cells = group_cells(list(reversed(records)))
    assert [(cell.norm, cell.pretrain) for cell in cells] == [
        ("ln", "none"),
        ("ln", "standard"),
        ("ln", "greenmim"),
        ("dtn", "none"),
        ("dtn", "standard"),
        ("dtn", "greenmim"),
    ]
    assert all(list(cell.records_by_seed) == [0, 1, 2] for cell in cells)


def test_runs_that_are_not_done_are_no_part_of_a_cell(records):
    records[0]["status"] = "failed"
    assert list(group_cells(records)[0].records_by_seed) == [1, 2]


def test_same_labels_with_another_configuration_are_cells_of_their_own(records):
    records[1]["config"]["task"]["learning_rate"] = 0.0005
    seeds = {cell.task: list(cell.records_by_seed) for cell in group_cells(records)}
    assert seeds == {
        "classification(learning_rate=0.0005)": [1],
        "classification(learning_rate=0.001)": [0, 2],
        "classification": [0, 1, 2],
    }


@pytest.mark.parametrize("key", ["output_dir", "logger", "data"])
def test_what_cannot_change_a_result_may_differ(records, key):
    changed = {
        "output_dir": "elsewhere",
        "logger": {"wandb": "off"},
        "data": {"name": "mnist_5k", "workers": 2},
    }
    records[1]["config"][key] = changed[key]
    assert len(group_cells(records)) == 6


def test_each_seed_may_look_at_a_run_of_its_own(records):
    for record in records:
        record["config"]["task"]["run"] = f"outputs/compare/runs/{record['cell']}"
    assert all(list(cell.records_by_seed) == [0, 1, 2] for cell in group_cells(records))


def test_two_runs_looked_at_with_one_seed_are_cells_of_their_own(records):
    record = records[0] | {"cell": "another"}
    record["config"] = record["config"] | {"task": record["config"]["task"] | {"run": "other"}}
    found = [cell for cell in group_cells([records[0], record]) if cell.norm == "ln"]
    assert [len(cell.records_by_seed) for cell in found] == [1, 1]


def test_two_runs_of_one_seed_are_refused(records):
    records[1] = records[0] | {"cell": "another"}
    with pytest.raises(ValueError, match=r"and another are both seed 0 of swin_nano / ln / none"):
        group_cells(records)


def test_two_units_are_refused(records):
    records[1]["metrics"]["test/accuracy"]["unit"] = "percent"
    with pytest.raises(ValueError, match="recorded in different units: fraction, percent"):
        group_cells(records)[0].unit("test/accuracy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "has schema 2; this one reads 1"),
        ({"labels": {}}, r"lacks labels\.backbone"),
        ({"status": "finished"}, "has status 'finished'; legal: done, running, failed, preempted"),
        ({"study": "other"}, "records of more than one study were given: compare, other"),
    ],
)
def test_what_is_no_record_is_refused(records, change, message):
    records[4] |= change
    with pytest.raises(ValueError, match=message):
        group_cells(records)


def test_no_records_are_refused():
    with pytest.raises(ValueError, match="there is no run record to report on"):
        group_cells([])


def test_null_in_a_record_is_nan(records):
    records[0]["metrics"]["test/loss"]["value"] = None
    assert math.isnan(group_cells(records)[0].values("test/loss")[0])


def test_total_time_is_pretraining_and_task(records):
    cells = group_cells(records)
    plain, standard = cells[0], cells[1]
    assert total_seconds(plain) == plain.values("time/task")
    expected = 44.0 + standard.values("time/task")[1]
    assert total_seconds(standard)[1] == pytest.approx(expected)


def test_total_time_needs_the_pretraining_time(records):
    del records[4]["metrics"]["time/pretrain"]  # ln, standard, seed 1
    assert list(total_seconds(group_cells(records)[1])) == [0, 2]


def test_a_recorded_total_wins(records):
    records[0]["metrics"]["time/total"] = {"value": 7.0, "unit": "s"}
    assert total_seconds(group_cells(records)[0]) == {0: 7.0}


def _line(step, value, name="train/loss"):
    row = {"stage": "task", "epoch": 0, "step": step, "name": name, "value": value}
    return json.dumps(row)


def test_after_a_resume_the_later_line_counts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join([_line(1, 2.0), _line(2, 1.5), _line(2, 1.25)]) + "\n")
    assert [(row["step"], row["value"]) for row in read_curves(path)] == [(1, 2.0), (2, 1.25)]


def test_a_line_still_being_written_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(_line(1, 2.0) + "\n" + _line(2, 1.0)[:20])
    assert len(list(read_curves(path))) == 1


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(_line(1, 2.0) + "\n{oops\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: not a metric line"):
        list(read_curves(path))


def test_curves_that_cannot_be_read_are_said(records, write_study):
    folder = write_study(records)
    (folder / "runs" / records[0]["cell"] / "metrics.jsonl").unlink()
    (folder / "runs" / records[1]["cell"] / "metrics.jsonl").write_text("[]\n")
    records[2]["curves"] = None
    table, problems = curves_table(records, folder)
    assert len(problems) == 3
    assert problems[0] == f"Curves missing: runs/{records[0]['cell']}/metrics.jsonl."
    assert table["cell"].nunique() == 15


def test_curves_from_inside_dtn_do_not_flood_the_study(records, write_study):
    folder = write_study(records)
    before, _ = curves_table(records, folder)
    row = {"stage": "task", "epoch": 0, "step": 0, "name": "dtn/norm/width/head0", "value": 1.0}
    for path in folder.glob("runs/*/metrics.jsonl"):
        path.write_text(path.read_text() + json.dumps(row) + "\n")
    after, problems = curves_table(records, folder)
    assert not problems
    assert after.equals(before)
