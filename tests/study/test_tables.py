import math
import re

import pytest
from scipy import stats

from triptych.study.cells import group_cells
from triptych.study.comparisons import difference_sentence, headline_comparisons
from triptych.study.tables import comparison_text, differences_table, summary_table


def _row(table, **labels):
    for label, value in labels.items():
        table = table[table[label] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_summary_columns_are_the_contract(records):
    columns = "backbone,norm,pretrain,task,data,metric,unit,mean,ci_low,ci_high,n_seeds"
    assert ",".join(summary_table(records).columns) == columns


def test_differences_columns_are_the_contract(records):
    columns = (
        "backbone,norm,pretrain,task,data,metric,unit,comparison,first,second,difference,"
        "ci_low,ci_high,n_seeds,p_value,p_holm,verdict"
    )
    assert ",".join(differences_table(records).columns) == columns


def test_summary_has_every_metric_of_every_cell(records):
    table = summary_table(records)
    expected = sum(len(record["metrics"]) for record in records) / 3
    assert len(table) == expected
    values = [
        record["metrics"]["test/accuracy"]["value"]
        for record in records
        if record["labels"]["norm"] == "dtn" and record["labels"]["pretrain"] == "greenmim"
    ]
    row = _row(table, norm="dtn", pretrain="greenmim", metric="test/accuracy")
    assert row["mean"] == pytest.approx(sum(values) / 3)
    half = stats.t.ppf(0.975, 2) * stats.sem(values)
    assert row["ci_high"] - row["mean"] == pytest.approx(half)
    assert (row["n_seeds"], row["unit"]) == (3, "fraction")


def test_all_pairs_along_norm_and_pretraining(records):
    table = differences_table(records)
    pairs = table[table["metric"] == "test/accuracy"]["comparison"].value_counts().to_dict()
    assert pairs == {
        "dtn - ln": 3,
        "standard - none": 2,
        "greenmim - none": 2,
        "greenmim - standard": 2,
    }


def test_a_difference_is_paired_over_seeds(records):
    row = _row(
        differences_table(records), comparison="dtn - ln", pretrain="none", metric="test/accuracy"
    )
    by = {
        norm: [
            record["metrics"]["test/accuracy"]["value"]
            for record in records
            if (record["labels"]["norm"], record["labels"]["pretrain"]) == (norm, "none")
        ]
        for norm in ("ln", "dtn")
    }
    test = stats.ttest_rel(by["dtn"], by["ln"])
    assert row["p_value"] == pytest.approx(test.pvalue)
    assert row["difference"] == pytest.approx(sum(by["dtn"]) / 3 - sum(by["ln"]) / 3)
    assert (row["first"], row["second"], row["norm"]) == ("dtn", "ln", "dtn - ln")
    assert row["p_holm"] == pytest.approx(min(1, 9 * row["p_value"]))  # the least of nine


def test_backbones_are_compared_where_all_else_is_equal(records):
    for record in records:
        if record["labels"]["norm"] == "dtn":
            record["labels"] |= {"norm": "ln", "backbone": "vit_nano"}
    table = differences_table(records)
    assert set(table["comparison"]) == {
        "vit_nano - swin_nano",
        "standard - none",
        "greenmim - none",
        "greenmim - standard",
    }
    assert "vit_nano − swin_nano · LN · GreenMIM · mnist_5k" in comparison_text(records, width=200)


def test_one_cell_gives_a_summary_and_an_empty_difference_table(records):
    assert len(summary_table(records[:3])) > 0
    assert differences_table(records[:3]).empty
    assert "LN" in comparison_text(records[:3])


def test_one_seed_is_said(records):
    seed_0 = [record for record in records if record["labels"]["seed"] == 0]
    table = differences_table(seed_0)
    assert set(table["verdict"]) == {"one seed: no interval", "measured once: no interval"}
    assert table["ci_low"].isna().all()
    assert table["p_holm"].isna().all()
    assert "one seed: no interval" in comparison_text(seed_0)
    assert not re.search(r"\bnan\b", comparison_text(seed_0), re.IGNORECASE)


def test_sentence_says_interval_seeds_correction_and_verdict(records):
    for record in records:
        labels = record["labels"]
        level = 0.9 + 0.001 * labels["seed"]
        gain = 0.02 + 0.0002 * labels["seed"] if labels["norm"] == "dtn" else 0.0
        record["metrics"]["test/accuracy"]["value"] = level + gain
    first, *_ = headline_comparisons(group_cells(records))
    assert difference_sentence(first) == (
        "DTN − LN · no pre-training: accuracy +2.02 points (95 % interval +1.97 to +2.07, 3 seeds, "
        "Holm p < 0.001): higher."
    )


def test_sentence_says_where_correction_takes_the_finding_back(records):
    sentences = [difference_sentence(item) for item in headline_comparisons(group_cells(records))]
    assert any(
        text.endswith("higher, but not after correction for 9 comparisons.") for text in sentences
    )
    assert any(text.endswith("no detectable difference.") for text in sentences)


def test_sentence_names_seeds_that_only_one_has(records):
    del records[0]
    first, *_ = headline_comparisons(group_cells(records))
    assert first.result.n_seeds == 2
    assert "(seed 0 left out: only one of the two has it)" in difference_sentence(first)


def test_a_diverged_run_is_said_and_not_averaged_away(records):
    records[0]["metrics"]["test/accuracy"]["value"] = None
    row = _row(summary_table(records), norm="ln", pretrain="none", metric="test/accuracy")
    assert math.isnan(row["mean"])
    assert "a value is not finite: no comparison" in comparison_text(records, width=200)
    assert "not finite" in comparison_text(records)


def test_terminal_table_has_cost_and_names_what_is_not_done(records):
    records[-1] |= {"status": "failed", "message": "boom"}
    text = comparison_text(records, width=200)
    assert "training throughput" in text
    assert "± " in text
    assert f"{records[-1]['cell']} (failed)" in text


def test_units_that_differ_between_cells_are_refused(records):
    for record in records[:3]:
        record["metrics"]["test/loss"]["unit"] = "bit"
    with pytest.raises(ValueError, match="test/loss is recorded in different units: nat, bit"):
        differences_table(records)


def test_nothing_done_gives_empty_tables(records):
    for record in records:
        record["status"] = "running"
    assert summary_table(records).empty
    assert differences_table(records).empty
    assert "(running)" in comparison_text(records)


def test_cost_is_measured_once_and_never_tested(records):
    row = _row(
        differences_table(records),
        comparison="dtn - ln",
        pretrain="none",
        metric="cost/task/train_throughput",
    )
    assert row["difference"] == pytest.approx(812 / 1.7 - 812)
    assert row["verdict"] == "measured once: no interval"
    assert row[["ci_low", "ci_high", "p_value", "p_holm"]].isna().all()
    mean = _row(summary_table(records), norm="ln", pretrain="none", metric="cost/parameters")
    assert (mean["mean"], mean["n_seeds"]) == (95_210, 3)
    assert mean[["ci_low", "ci_high"]].isna().all()
