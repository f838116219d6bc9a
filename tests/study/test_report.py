import re
import subprocess
import sys
from html.parser import HTMLParser

import pandas as pd
import pytest

from triptych.study import report_pictures
from triptych.study.report import build_report

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Collects resources and text, and checks that every tag is closed."""

    def __init__(self, html):
        super().__init__()
        self.open, self.resources, self.links, self.text = [], [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        assert tag not in ("script", "link", "iframe", "object")
        if "src" in found:
            self.resources.append(found["src"])
        if "href" in found:
            self.links.append(found["href"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


def _page(path):
    return Page(path.read_text(encoding="utf-8"))


def test_a_whole_study(records, write_study):
    folder = write_study(records)
    page = _page(build_report(records, folder, "LN & DTN <compared>"))
    assert "LN & DTN <compared>" in page.words
    assert "Compared: LN and DTN; no pre-training, standard MIM and GreenMIM." in page.words
    assert "18 done of 18; seeds 0, 1, 2" in page.words
    assert "AMD EPYC, 2 cores" in page.words
    assert "torch 2.14.1" in page.words
    assert "0123456789ab" in page.words
    assert "not complete" not in page.words
    assert "multiply-adds of predicting one image" in page.words
    # 6 figures and 2 pictures of 18 runs
    assert len(page.resources) == 6 + 36


def test_the_page_needs_nothing_from_elsewhere(records, write_study):
    folder = write_study(records)
    path = build_report(records, folder)
    page = _page(path)
    assert all(source.startswith("data:image/") for source in page.resources)
    html = path.read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", html)
    for link in page.links:
        assert (folder / link).is_file(), link


def test_csv_files_are_the_tables(records, write_study):
    folder = write_study(records)
    build_report(records, folder)
    summary = pd.read_csv(folder / "summary.csv", keep_default_na=False, na_values=[""])
    columns = "backbone,norm,pretrain,task,data,metric,unit,mean,ci_low,ci_high,n_seeds"
    assert ",".join(summary.columns) == columns
    assert set(summary["pretrain"]) == {"none", "standard", "greenmim"}
    differences = pd.read_csv(folder / "differences.csv")
    accuracy = differences[differences["metric"] == "test/accuracy"]
    assert set(accuracy["verdict"]) == {"higher", "no detectable difference"}
    assert not list(folder.glob(".*"))


def test_the_same_records_give_the_same_bytes(records, write_study):
    folder = write_study(records)
    first = build_report(records, folder).read_bytes()
    assert build_report(records, folder).read_bytes() == first


def test_a_partial_study_says_so_at_the_top(records, write_study):
    folder = write_study(records)
    records[0] |= {"status": "failed", "message": "ValueError: loss is <nan> at step 96"}
    records[1]["status"] = "running"
    removed = records.pop()
    text = _page(build_report(records, folder)).words
    top = text[: text.index("Hardware")]
    assert "not complete: 15 of 18 runs are done (1 running, 1 failed, 1 without a record)" in top
    assert f"Failed: {records[0]['cell']}." in top
    assert "No record: swin_nano / dtn / greenmim / classification / mnist_5k, seed 2." in top
    assert removed["cell"] not in text
    # Two pictures each of the three runs that are not done keep their places in the grid.
    assert text.count("No done run with this seed.") == 6
    assert "ValueError: loss is <nan> at step 96" in text


def test_missing_runs_can_be_named(records, write_study):
    text = _page(build_report(records, write_study(records), missing=["cell-x"])).words
    assert "18 of 19 runs are done (1 without a record)" in text
    assert "No record: cell-x." in text


def test_nothing_done_still_gives_a_report(records, write_study):
    folder = write_study(records)
    for record in records:
        record |= {"status": "failed", "message": None}
        del record["metrics"]
    text = _page(build_report(records, folder)).words
    assert "0 of 18 runs are done (18 failed)" in text
    assert "No run is done yet, so there is no result to show." in text
    assert "The record holds no message." in text
    assert (folder / "summary.csv").read_text().count("\n") == 1


def test_one_seed(records, write_study):
    seed_0 = [record for record in records if record["labels"]["seed"] == 0]
    text = _page(build_report(seed_0, write_study(seed_0))).words
    assert "one seed: no interval" in text
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)


def test_missing_pictures_and_curves_are_said(records, write_study):
    folder = write_study(records)
    run = folder / "runs" / records[0]["cell"]
    (run / "pictures" / "rollout.png").unlink()
    (run / "metrics.jsonl").unlink()
    records[3]["pictures"] = []
    text = _page(build_report(records, folder)).words
    place = f"runs/{records[0]['cell']}/pictures/rollout.png"
    assert f"Picture missing: {place}." in text
    assert f"File missing: {place}" in text
    assert f"Curves missing: runs/{records[0]['cell']}/metrics.jsonl." in text
    assert text.count("Not made in this run.") == 2


def test_pictures_beyond_the_budget_are_linked(records, write_study, monkeypatch):
    folder = write_study(records)
    first = folder / "runs" / records[0]["cell"] / "pictures" / "rollout.png"
    monkeypatch.setattr(
        report_pictures.PictureBudget.__init__, "__defaults__", (first.stat().st_size,)
    )
    page = _page(build_report(records, folder))
    assert sum(source.startswith("data:image/png") for source in page.resources) == 1
    assert page.words.count("Not embedded, to keep this file small") == 35


def test_different_machines_are_warned_of(records, write_study):
    records[0]["machine"] = {"cpu": "EPYC", "cores": 16, "gpu": "H200"}
    records[0]["git"]["dirty"] = True
    text = _page(build_report(records, write_study(records))).words
    assert (
        "not the same in all runs, so compare times with care: H200, EPYC, 16 cores | AMD" in text
    )
    assert "0123456789ab with uncommitted changes | 0123456789ab" in text


def test_what_else_the_cells_differ_in_is_shown(records, write_study):
    for record in records:
        if record["labels"]["norm"] == "dtn":
            record["config"]["task"]["learning_rate"] = 0.002
    text = _page(build_report(records, write_study(records))).words
    assert "task.learning_rate 0.001, 0.002" in text


def test_records_that_cannot_be_averaged_leave_no_file(records, write_study):
    folder = write_study(records)
    records[1]["labels"]["seed"] = 0
    with pytest.raises(ValueError, match=r"are both seed 0 of"):
        build_report(records, folder)
    assert not (folder / "report.html").exists()
    assert not (folder / "summary.csv").exists()


def test_two_backbones_and_data_sets(records, write_study):
    folder = write_study(records)
    for record in records:
        if record["labels"]["norm"] == "dtn":
            record["labels"] |= {"norm": "ln", "backbone": "vit_nano"}
    text = _page(build_report(records, folder)).words
    assert "Between backbones" in text
    assert "vit_nano · mnist_5k · classification" in text


def test_reporting_does_not_load_torch():
    code = (
        "import sys, triptych.study.report, triptych.study.dashboard; "
        "assert not {'torch', 'wandb', 'pytorch_lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
