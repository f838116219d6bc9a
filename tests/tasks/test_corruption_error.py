"""mCE and plain means, by hand."""

from __future__ import annotations

import pytest

from triptych.choices import Corruption
from triptych.tasks.corruption_error import (
    ALEXNET,
    ALEXNET_CLEAN,
    IncompleteError,
    corruption_error,
    missing_sets,
    relative_corruption_error,
)
from triptych.tasks.robustness import asked, errors_of, imagenet_metrics, robustness_metrics

C = Corruption


def errors(value: float = 0.5) -> dict[C, dict[int, float]]:
    return {corruption: dict.fromkeys(range(1, 6), value) for corruption in C}


def test_alexnet_itself_has_an_mce_of_1() -> None:
    own = {corruption: dict.fromkeys(range(1, 6), mean) for corruption, mean in ALEXNET.items()}
    assert corruption_error(own) == pytest.approx(1)
    assert relative_corruption_error(own, ALEXNET_CLEAN) == pytest.approx(1)


def test_by_hand() -> None:
    """Half of AlexNet's error under fog and twice it under snow, else equal."""
    own = {corruption: dict.fromkeys(range(1, 6), mean) for corruption, mean in ALEXNET.items()}
    # Severities may differ: only their sum counts. 5 * 0.819324 / 2 = 2.04831.
    own[C.fog] = {1: 0.1, 2: 0.2, 3: 0.4, 4: 0.6, 5: 0.74831}
    own[C.snow] = dict.fromkeys(range(1, 6), 2 * 0.866816)
    assert corruption_error(own) == pytest.approx((13 + 0.5 + 2) / 15)
    clean = 0.3
    want = sum((mean - clean) / (mean - 0.4348) for mean in ALEXNET.values())
    want += (0.819324 / 2 - 0.819324) / (0.819324 - 0.4348)
    want += 0.866816 / (0.866816 - 0.4348)
    assert relative_corruption_error(own, clean) == pytest.approx(want / 15)


def test_alexnets_means_are_those_of_its_severities() -> None:
    """Sums over severities of the published single errors (hendrycks/robustness, issue 10)."""
    single = {
        C.gaussian_noise: (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
        C.motion_blur: (0.58430, 0.70048, 0.82108, 0.89750, 0.92638),
        C.brightness: (0.45140, 0.48502, 0.54048, 0.62166, 0.72440),
        C.contrast: (0.64548, 0.76150, 0.88874, 0.97760, 0.99270),
    }
    for corruption, values in single.items():
        assert sum(values) / 5 == pytest.approx(ALEXNET[corruption], abs=2e-6)


def test_no_mce_of_an_incomplete_set() -> None:
    own = errors()
    del own[C.fog]
    del own[C.snow][2]
    assert missing_sets(own) == ["snow/2", "fog/1", "fog/2", "fog/3", "fog/4", "fog/5"]
    with pytest.raises(IncompleteError) as failure:
        corruption_error(own)
    assert str(failure.value) == (
        "no mCE from 69 of 75 sets of corrupted images: snow/2, fog/1, fog/2, fog/3, fog/4 and 1 "
        "more missing"
    )
    found, why = imagenet_metrics(own, 0.3, num_classes=1000, images=50_000)
    assert found == {}
    assert why == ["no mCE: 6 of 75 sets are missing"]


def test_no_mce_of_other_images() -> None:
    found, why = imagenet_metrics(errors(), 0.3, num_classes=100, images=5000)
    assert found == {}
    assert why == [
        "no mCE: AlexNet's errors are of 50000 images of 1000 classes, not of 5000 of 100"
    ]
    found, why = imagenet_metrics(errors(), 0.3, num_classes=1000, images=50_000)
    assert why == []
    assert found["corruption/mce"] == pytest.approx(sum(0.5 / e for e in ALEXNET.values()) / 15)


def rows(*sets: tuple[C, int, float]) -> list[dict[str, object]]:
    return [
        {"corruption": str(name), "severity": severity, "error": error, "images": 8}
        for name, severity, error in sets
    ]


def test_plain_means() -> None:
    wanted = asked(["snow", "fog"], [5, 1])
    assert wanted == [(C.snow, 1), (C.snow, 5), (C.fog, 1), (C.fog, 5)]
    sets = rows((C.snow, 1, 0.2), (C.snow, 5, 0.4), (C.fog, 1, 0.5), (C.fog, 5, 0.9))
    assert robustness_metrics(sets, 0.1, wanted) == pytest.approx(
        {
            "corruption/clean_error": 0.1,
            "corruption/mean_error": 0.5,
            "corruption/error/snow": 0.3,
            "corruption/error/fog": 0.7,
        }
    )
    assert errors_of(sets)[C.fog] == {1: 0.5, 5: 0.9}


def test_an_incomplete_corruption_has_no_mean() -> None:
    wanted = asked(["snow", "fog"], [1, 5])
    sets = rows((C.snow, 1, 0.2), (C.snow, 5, 0.4), (C.fog, 1, 0.5))
    assert robustness_metrics(sets, 0.1, wanted).keys() == {
        "corruption/clean_error",
        "corruption/error/snow",
    }


def test_all_fifteen_where_none_is_named() -> None:
    assert len(asked([], (1, 2, 3, 4, 5))) == 75
