import math

import pytest

from triptych.study import wording


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.9534, "fraction", "95.3 %"),
        (1.1e7, "MAC/image", "11.0 M MAC/image"),
        (95_210, "count", "95.2 k"),
        (832, "count", "832"),
        (812.3, "images/s", "812 images/s"),
        (20_480, "MiB", "20,480 MiB"),
        (4.2, "MiB/image", "4.20 MiB/image"),
        (125.2, "s", "2 min 5 s"),
        (3780, "s", "1 h 3 min"),
        (42.13, "s", "42.1 s"),
        (0.0, "nat", "0 nat"),
        (math.nan, "fraction", "not finite"),
    ],
)
def test_values_with_units(value, unit, text):
    assert wording.format_value(value, unit) == text


@pytest.mark.parametrize(
    ("mean", "half", "unit", "text"),
    [
        (0.953, 0.0081, "fraction", "95.3 ± 0.8 %"),
        (812.0, 12.4, "images/s", "812 ± 12 images/s"),
        (812.0, 0.31, "images/s", "812.0 ± 0.3 images/s"),
        (123.4, 0.0, "MiB", "123 MiB"),
        (0.953, math.nan, "fraction", "95.3 %"),
    ],
)
def test_means_with_half_widths(mean, half, unit, text):
    assert wording.format_mean(mean, half, unit) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0123, "fraction", "+1.23 points"),
        (-0.0123, "fraction", "−1.23 points"),
        (-0.00001, "fraction", "0.00 points"),
        (-335.2, "images/s", "−335 images/s"),
        (832, "count", "+832"),
    ],
)
def test_changes_are_signed(value, unit, text):
    assert wording.format_change(value, unit) == text


def test_a_range_has_one_scale():
    assert wording.format_range(-4e3, 5.2e4, "images/s") == "−4.00 to +52.0 k"
    assert wording.format_range(-0.001, 0.02, "fraction") == "−0.10 to +2.00"


def test_baselines_come_first():
    def order(axis, values):
        return sorted(values, key=lambda value: wording.axis_rank(axis, value))

    norms = ["dtn(form=paper)", "bn", "dtn", "ln"]
    assert order("norm", norms) == ["ln", "bn", "dtn", "dtn(form=paper)"]
    pretrains = ["greenmim", "standard", "none"]
    assert order("pretrain", pretrains) == ["none", "standard", "greenmim"]


def test_names_keep_what_they_do_not_know():
    assert wording.value_name("dtn(form=paper)") == "DTN(form=paper)"
    assert wording.value_name("vit_nano") == "vit_nano"
    assert wording.metric_name("test/bbox_ap") == "bbox ap"


@pytest.mark.parametrize(("p", "text"), [(0.0001, "< 0.001"), (0.0312, "0.031"), (math.nan, "–")])
def test_p_values(p, text):
    assert wording.format_p(p) == text
