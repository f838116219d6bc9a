"""Errors under corruptions in the tables of a study, relative to LN by hand."""

from __future__ import annotations

from typing import Any

import pytest

from triptych.study.cells import group_cells, headline_metric
from triptych.study.corruptions import ALL, COLUMNS, corruption_html, corruption_table
from triptych.study.panels import default_dashboard, load_study

ERRORS = {
    ("ln", 0): {"fog": 0.4, "snow": 0.2},
    ("ln", 1): {"fog": 0.5, "snow": 0.3},
    ("dtn", 0): {"fog": 0.2, "snow": 0.3},
    ("dtn", 1): {"fog": 0.4, "snow": 0.3},
}


def record(norm: str, seed: int, errors: dict[str, float], **extra: Any) -> dict[str, Any]:
    numbers = {f"corruption/error/{name}": error for name, error in errors.items()}
    numbers |= {"corruption/mean_error": sum(errors.values()) / len(errors), "test/accuracy": 0.9}
    return {
        "schema": 1,
        "cell": f"swin_nano-{norm}-seed{seed}",
        "study": "robustness",
        "status": "done",
        "message": None,
        "config": {"seed": seed, "norm": {"name": norm}},
        "labels": {
            "backbone": "swin_nano",
            "norm": norm,
            "pretrain": "none",
            "data": "mnist_5k",
            "task": "robustness",
            "seed": seed,
        },
        "metrics": {name: {"value": v, "unit": "fraction"} for name, v in numbers.items()},
        "pictures": [],
    } | extra


def records() -> list[dict[str, Any]]:
    return [record(norm, seed, errors) for (norm, seed), errors in ERRORS.items()]


def line(table: Any, norm: str, corruption: str) -> Any:
    return table[(table["norm"] == norm) & (table["corruption"] == corruption)].iloc[0]


def test_relative_to_ln_by_hand() -> None:
    table = corruption_table(records())
    assert tuple(table.columns) == COLUMNS
    fog = line(table, "dtn", "fog")
    assert fog["error"] == pytest.approx(0.3)
    assert fog["relative_to_ln"] == pytest.approx((0.2 / 0.4 + 0.4 / 0.5) / 2)
    every = line(table, "dtn", ALL)
    assert every["error"] == pytest.approx((0.25 + 0.35) / 2)
    by_seed = ((0.2 / 0.4 + 0.3 / 0.2) / 2, (0.4 / 0.5 + 0.3 / 0.3) / 2)
    assert every["relative_to_ln"] == pytest.approx(sum(by_seed) / 2)
    assert (every["n_seeds"], every["relative_n_seeds"]) == (2, 2)
    assert line(table, "ln", ALL)["relative_to_ln"] == pytest.approx(1)


def test_without_an_ln_cell_nothing_is_relative() -> None:
    table = corruption_table([one for one in records() if one["labels"]["norm"] == "dtn"])
    assert table["relative_to_ln"].isna().all()
    assert (table["relative_n_seeds"] == 0).all()
    assert table["error"].notna().all()


def test_only_shared_seeds_are_relative() -> None:
    table = corruption_table(records()[:1] + records()[2:])
    assert line(table, "dtn", "fog")["relative_n_seeds"] == 1
    assert line(table, "dtn", "fog")["n_seeds"] == 2


def test_an_error_free_baseline_gives_no_ratio() -> None:
    given = [record("ln", 0, {"fog": 0.0}), record("dtn", 0, {"fog": 0.2})]
    assert corruption_table(given)["relative_to_ln"].isna().all()


def test_a_study_leads_with_the_mean_error_and_shows_the_table(tmp_path: Any) -> None:
    given = records()
    given[0]["remarks"] = ["incomplete: fog/3 is missing"]
    cells = group_cells(given)
    assert headline_metric(cells) == "corruption/mean_error"
    html = corruption_html(given, cells)
    assert "relative to LN, mean of all" in html
    assert "30.0" in html
    assert "swin_nano-ln-seed0: incomplete: fog/3 is missing" in html
    study = load_study(given, tmp_path)
    assert "Corruptions" in [section.title for section in default_dashboard(study).sections]


def test_other_studies_have_no_such_table() -> None:
    plain = record("ln", 0, {"fog": 0.1})
    plain["metrics"] = {"test/accuracy": {"value": 0.9, "unit": "fraction"}}
    assert corruption_table([plain]).empty
