"""The findings of a study's runs: means over seeds, verdicts counted, controls beside."""

import copy
import csv
import math

import pytest

from triptych.study.cells import group_cells
from triptych.study.findings import COLUMNS, findings_html, findings_table

HEAD = ("finding", "statement", "verdict", "check", "quantity", "value", "ci_low", "ci_high",
        "images", "untrained", "untrained_low", "untrained_high", "wanted", "met", "reference",
        "reason")  # fmt: skip
STATEMENTS = {"F4": "spreads over its object", "F6": "the class token is settled"}


def row(number, verdict, check="", value="", untrained=""):
    empty = dict.fromkeys(HEAD, "")
    return empty | {
        "finding": number,
        "statement": STATEMENTS[number],
        "verdict": verdict,
        "check": check,
        "quantity": f"the {check} number" if check else "",
        "value": value,
        "untrained": untrained,
        "wanted": "> 2" if check else "",
        "reference": "8 to 11" if check else "",
    }


def write_findings(folder, record, runs):
    """A run record for each seed, with its table of findings on disk."""
    made = []
    for seed, rows in enumerate(runs):
        one = copy.deepcopy(record)
        one["labels"]["seed"], one["cell"] = seed, f"cell-seed{seed}"
        one["pictures"] = [
            {"name": "findings", "title": "Findings", "file": "pictures/findings.png",
             "numbers": "pictures/findings.csv", "caption": ""}
        ]  # fmt: skip
        place = folder / "runs" / one["cell"] / "pictures" / "findings.csv"
        place.parent.mkdir(parents=True)
        with place.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        made.append(one)
    return made


@pytest.fixture
def record(full_records):
    return full_records[0]


def seeds_of(tmp_path, record):
    runs = [
        [row("F4", verdict, "own_object", value, untrained), row("F6", "cannot be asked")]
        for verdict, value, untrained in (
            ("holds", 2.5, 1.0),
            ("holds also untrained", 3.0, 2.5),
            ("does not hold", 2.0, 1.0),
        )
    ]
    return write_findings(tmp_path, record, runs)


def test_numbers_are_means_over_seeds_and_verdicts_are_counted(tmp_path, record):
    table = findings_table(seeds_of(tmp_path, record), tmp_path)
    assert list(table.columns) == list(COLUMNS)
    asked, unasked = table.to_dict("records")
    assert (asked["mean"], asked["n_seeds"], asked["untrained"]) == (2.5, 3, 1.5)
    # Three seeds: 2.5 ± t(0.975, 2) · 0.5 / √3.
    half = 4.302652729749464 * 0.5 / math.sqrt(3)
    assert (asked["ci_low"], asked["ci_high"]) == pytest.approx((2.5 - half, 2.5 + half))
    counts = [asked[key] for key in ("holds", "also_untrained", "fails", "unanswered")]
    assert counts == [1, 1, 1, 0]
    assert math.isnan(unasked["mean"])
    assert unasked["unanswered"] == 3


def test_the_report_says_what_holds_untrained(tmp_path, record):
    made = seeds_of(tmp_path, record)
    page = findings_html(made, tmp_path, group_cells(made))
    assert "holds in 2 of 3, untrained in 1" in page
    assert "2.5 ± 1.2 (untrained 1.5)" in page
    assert "cannot be asked" in page


def test_tables_of_runs_without_a_control_are_read(tmp_path, record):
    rows = [row("F4", "holds", "own_object", 2.5), row("F6", "cannot be asked")]
    old = [{k: v for k, v in one.items() if not k.startswith("untrained")} for one in rows]
    made = write_findings(tmp_path, record, [old])
    (asked, _) = findings_table(made, tmp_path).to_dict("records")
    assert math.isnan(asked["untrained"])
    assert "untrained" not in findings_html(made, tmp_path, group_cells(made))


def test_runs_without_findings_give_no_table(tmp_path, record):
    bare = copy.deepcopy(record) | {"pictures": []}
    assert findings_table([bare], tmp_path).empty
