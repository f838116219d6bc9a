"""Average precision on cases that can be worked out by hand, and by the official tool's own way."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from triptych.data.object_masks import encode_mask
from triptych.measure.average_precision import AveragePrecision, average_precision

LEVELS = 101
BOX = [10.0, 10.0, 100.0, 10.0]
Found = list[dict[str, Any]]


def ground_truth(*objects: dict[str, Any], images: int = 1, categories: int = 1) -> dict[str, Any]:
    """Objects are given by what differs from BOX of category 1 in image 1."""
    plain = {"image_id": 1, "category_id": 1, "bbox": BOX, "iscrowd": 0}
    annotations = [plain | {"id": number} | one for number, one in enumerate(objects)]
    for item in annotations:
        item["area"] = item["bbox"][2] * item["bbox"][3]
    return {
        "images": [{"id": i + 1, "height": 200, "width": 300} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": k + 1, "name": f"class {k}"} for k in range(categories)],
    }


def found(score: float, **other: Any) -> dict[str, Any]:
    return {"image_id": 1, "category_id": 1, "bbox": BOX, "score": score} | other


def number(truth: dict[str, Any], detections: Found, kind: Any = "bbox", name: str = "AP") -> float:
    return float(getattr(average_precision(truth, detections, kind), name))


def perfect(annotations: dict[str, Any]) -> Found:
    kept = ("image_id", "category_id", "bbox", "segmentation")
    return [
        {key: item[key] for key in kept if key in item} | {"score": 0.5}
        for item in annotations["annotations"]
    ]


def test_all_objects_found_is_one() -> None:
    truth = ground_truth({}, {"image_id": 2}, {"category_id": 2}, images=2, categories=2)
    for name in ("AP", "AP50", "AP75", "AR1"):
        assert number(truth, perfect(truth), name=name) == pytest.approx(1)


def test_half_of_the_objects_found_is_half() -> None:
    truth = ground_truth(*({"image_id": i + 1} for i in range(10)), images=10)
    half = perfect(truth)[:5]
    assert number(truth, half) == pytest.approx(51 / LEVELS)  # recall 0, 0.01, … 0.5
    assert number(truth, half, name="AR100") == pytest.approx(0.5)


AWAY = [150.0, 100.0, 100.0, 10.0]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        # Scores of the two objects, and of a detection where there is none.
        ((0.9, 0.8, 0.7), 1.0),
        ((0.9, 0.7, 0.8), (51 + 50 * 2 / 3) / LEVELS),
        ((0.8, 0.7, 0.9), 2 / 3),
    ],
)
def test_the_order_of_scores_counts(scores: tuple[float, ...], expected: float) -> None:
    truth = ground_truth({}, {"image_id": 2}, images=2)
    detections = [
        found(scores[0]),
        found(scores[1], image_id=2),
        found(scores[2], bbox=AWAY),
    ]
    assert number(truth, detections) == pytest.approx(expected)


def test_a_second_detection_of_an_object_is_wrong() -> None:
    truth = ground_truth({}, {"image_id": 2}, images=2)
    twice = [found(0.9), found(0.8), found(0.7, image_id=2)]
    expected = (51 + 50 * 2 / 3) / LEVELS
    assert number(truth, twice) == pytest.approx(expected)


def test_overlap_must_reach_the_threshold() -> None:
    # 100 pixels wide, shifted by 23: 77 / 123 = 0.626, enough for 0.50, 0.55 and 0.60.
    shifted = [BOX[0] + 23, *BOX[1:]]
    truth, detections = ground_truth({}), [found(0.5, bbox=shifted)]
    expected = {"AP": 0.3, "AP50": 1, "AP75": 0}
    for name, value in expected.items():
        assert number(truth, detections, name=name) == pytest.approx(value)


def test_what_lies_in_a_crowd_is_neither_right_nor_wrong() -> None:
    truth = ground_truth({}, {"bbox": [140.0, 90.0, 150.0, 50.0], "iscrowd": 1})
    detections = [found(0.9, bbox=AWAY), found(0.5)]
    assert number(truth, detections) == pytest.approx(1)
    without = ground_truth({})
    assert number(without, detections) == pytest.approx(0.5)
    # A crowd that is not found is not missed.
    assert number(truth, [found(0.5)]) == pytest.approx(1)


def test_nothing_found_is_nought() -> None:
    result = average_precision(ground_truth({}), [], "bbox")
    assert set(result.numbers().values()) == {0.0}
    masked = ground_truth({"segmentation": encode_mask(torch.ones(200, 300))})
    assert set(average_precision(masked, [], "segm").numbers().values()) == {0.0}


def test_what_there_is_not_is_no_number() -> None:
    truth = ground_truth({"bbox": [0.0, 0.0, 20.0, 20.0]}, categories=2)
    result = average_precision(truth, perfect(truth), "bbox")
    assert result.numbers()["APs"] == pytest.approx(1)
    assert math.isnan(result.APm)
    assert set(result.numbers()) == {
        *("AP", "AP50", "AP75", "APs"),
        *("AR1", "AR10", "AR100", "ARs"),
    }
    assert result.by_category[1] == pytest.approx(1)
    assert math.isnan(result.by_category[2])
    empty = average_precision(ground_truth(), [found(0.5)], "bbox")
    assert empty.numbers() == {}


def test_the_object_with_number_nought_counts() -> None:
    # The official tool takes its number for "no match".
    truth = ground_truth({}, {"image_id": 2}, images=2)
    assert truth["annotations"][0]["id"] == 0
    assert number(truth, perfect(truth)) == pytest.approx(1)


def test_masks_are_compared_where_boxes_agree() -> None:
    square, corner = torch.zeros(2, 200, 300, dtype=torch.bool)
    square[10:50, 10:50] = True
    corner[10:50, 10:50] = torch.ones(40, 40).triu().bool()
    item = {"bbox": [10.0, 10.0, 40.0, 40.0], "segmentation": encode_mask(square)}
    truth = ground_truth(item)
    half = found(0.5, bbox=item["bbox"], segmentation=encode_mask(corner))
    assert number(truth, [half]) == pytest.approx(1)
    assert number(truth, [half], "segm") == pytest.approx(
        0.1
    )  # 820 / 1600 is enough for 0.50 alone
    whole = found(0.5, segmentation=encode_mask(square))
    assert number(truth, [whole], "segm") == pytest.approx(1)


def test_the_size_of_a_found_mask_is_its_own() -> None:
    # A small mask in a box of middle size, where the ground truth has a small object elsewhere:
    # wrong for small objects, whatever box the detection brings along.
    small, other = torch.zeros(2, 200, 300, dtype=torch.bool)
    small[0:20, 0:20] = True
    other[100:110, 100:150] = True
    truth = ground_truth({"bbox": [0.0, 0.0, 20.0, 20.0], "segmentation": encode_mask(small)})
    detections = [
        found(0.9, bbox=[100.0, 100.0, 50.0, 50.0], segmentation=encode_mask(other)),
        found(0.5, bbox=[0.0, 0.0, 20.0, 20.0], segmentation=encode_mask(small)),
    ]
    assert number(truth, detections, "segm", "APs") == pytest.approx(0.5)
    # The box is of middle size: as a wrong box it does not count among small ones.
    assert number(truth, detections, "bbox", "APs") == pytest.approx(1)


def test_nothing_is_printed_and_nothing_changed(capsys: pytest.CaptureFixture[str]) -> None:
    truth = ground_truth({}, {"image_id": 2}, images=2)
    detections = perfect(truth)
    before = copy.deepcopy((truth, detections))
    average_precision(truth, detections, "bbox")
    assert (truth, detections) == before
    assert capsys.readouterr() == ("", "")


def test_what_the_tool_raises_comes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: COCOeval) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(COCOeval, "accumulate", fail)
    with pytest.raises(RuntimeError, match="out of order"):
        average_precision(ground_truth({}), [found(0.5)], "bbox")


@pytest.mark.parametrize(
    ("detections", "kind", "sentence"),
    [
        ([], "boxes", "kind must be one of bbox, segm, got boxes"),
        (
            [found(0.5), found(0.5, image_id=9)],
            "bbox",
            "1 of 2 detections have a image_id that is not among the 1 images of the ground truth; "
            "the first is 9",
        ),
        (
            [found(0.5, category_id=0)],
            "bbox",
            "1 of 1 detections have a category_id that is not among the 1 categories of the ground "
            "truth; the first is 0",
        ),
        ([found(0.5)], "segm", "1 of 1 detections have no segmentation"),
        ([], "segm", "1 of 1 annotations of the ground truth have no segmentation"),
        ([found(math.nan)], "bbox", "1 of 1 detections have a score that is no number"),
    ],
)
def test_wrong_detections_are_refused(detections: Found, kind: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        average_precision(ground_truth({}), detections, kind)


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, Any], Found]:
    """Up to nine objects and twelve detections in three images of 200 × 300 pixels."""
    place = {"image_id": st.integers(1, 3), "category_id": st.integers(1, 2)}
    side = st.integers(1, 120).map(float)
    box = st.tuples(side, side, side, side).map(list)
    objects = draw(
        st.lists(
            st.fixed_dictionaries(place | {"bbox": box, "iscrowd": st.sampled_from([0, 0, 0, 1])}),
            min_size=1,
            max_size=9,
        )
    )
    truth = ground_truth(*objects, images=3, categories=2)
    near = st.sampled_from([item["bbox"] for item in truth["annotations"]])
    score = st.integers(1, 20).map(lambda value: value / 20)
    detections = draw(
        st.lists(
            st.fixed_dictionaries(place | {"bbox": st.one_of(box, near), "score": score}),
            max_size=12,
        )
    )
    return truth, detections


def equal(a: AveragePrecision, b: AveragePrecision) -> bool:
    return a.numbers() == b.numbers()


@given(cases(), st.floats(0.1, 5), st.floats(-3, 3), st.sampled_from([1, 3]))
def test_only_the_order_of_scores_counts(
    case: tuple[dict[str, Any], Found], scale: float, shift: float, power: int
) -> None:
    truth, detections = case
    moved = [item | {"score": scale * item["score"] ** power + shift} for item in detections]
    assert equal(
        average_precision(truth, detections, "bbox"), average_precision(truth, moved, "bbox")
    )


@given(cases())
def test_the_ground_truth_itself_is_perfect(case: tuple[dict[str, Any], Found]) -> None:
    truth, _ = case
    result = average_precision(truth, perfect(truth), "bbox")
    for name in ("AP", "AP50", "AR100"):
        if name in result.numbers():
            assert result.numbers()[name] == pytest.approx(1)


@given(cases())
def test_numbers_are_those_of_the_official_way(case: tuple[dict[str, Any], Found]) -> None:
    truth, detections = case
    numbered = copy.deepcopy(truth)
    for item in numbered["annotations"]:
        item["id"] += 1
    official = COCO()
    official.dataset = numbered
    official.createIndex()
    # Its reader cannot take an empty list.
    detections = detections or [found(0.5)]
    tool = COCOeval(official, official.loadRes(copy.deepcopy(detections)), "bbox")
    tool.evaluate()
    tool.accumulate()
    tool.summarize()
    result = average_precision(truth, detections, "bbox")
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    names += ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    expected = {name: float(v) for name, v in zip(names, tool.stats, strict=True) if v >= 0}
    assert result.numbers() == expected
