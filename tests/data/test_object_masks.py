"""Masks in COCO's three notations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triptych.data import DataError
from triptych.data.object_masks import decode_mask, encode_mask
from triptych.data.packed import Packed
from triptych.data.scenes import run_lengths


@given(st.lists(st.booleans(), min_size=35, max_size=35))
def test_both_run_lengths_give_the_mask_back(values: list[bool]) -> None:
    mask = torch.tensor(values).view(5, 7)
    assert torch.equal(decode_mask(run_lengths(mask), 5, 7), mask)
    encoded = encode_mask(mask)
    assert isinstance(encoded["counts"], str)
    assert torch.equal(decode_mask(encoded, 5, 7), mask)


@given(st.integers(0, 2**31), st.integers(1, 300), st.integers(1, 300))
def test_large_and_sparse_masks_come_back(seed: int, height: int, width: int) -> None:
    # Long runs take several characters, differences may be negative.
    rare = torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < 0.003
    assert torch.equal(decode_mask(encode_mask(rare), height, width), rare)


def test_polygons_are_filled_and_joined() -> None:
    left, right = [1, 1, 4, 1, 4, 5, 1, 5], [6, 2, 8, 2, 8, 4, 6, 4]
    expected = torch.zeros(8, 10, dtype=torch.bool)
    expected[1:5, 1:4] = True
    expected[2:4, 6:8] = True
    assert torch.equal(decode_mask([left, right], 8, 10), expected)


def test_a_polygon_without_three_corners_covers_nothing() -> None:
    # Four numbers alone are a box to the official tool.
    square = [1, 1, 4, 1, 4, 5, 1, 5]
    assert not decode_mask([[1, 1, 3, 3]], 8, 10).any()
    assert torch.equal(decode_mask([[1, 1, 3, 3], square], 8, 10), decode_mask([square], 8, 10))


@pytest.mark.parametrize(
    ("segmentation", "sentence"),
    [
        ({"size": [3, 3], "counts": [9]}, r"has the size \[3, 3\], but its image \[4, 5\]"),
        ({"size": [4, 5], "counts": [3, 4]}, "add up to 7 pixels, but its image has 20"),
        ({"counts": [20]}, "must be a list of polygons, or run lengths with size and counts"),
        ({"size": [4, 5], "counts": ""}, "has counts that are no run lengths: b''"),
        ({"size": [4, 5], "counts": "0~"}, "has counts that are no run lengths"),
        ({"size": [4, 5], "counts": [-3, 23]}, "has a negative run length, -3"),
        ("drawn", "must be a list of polygons, or run lengths with size and counts; got drawn"),
        ([[1, 1, 2, 2, 3, 1, 0]], "has an odd number of coordinates"),
    ],
)
def test_what_is_no_segmentation_is_refused(segmentation: object, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        decode_mask(segmentation, 4, 5)  # type: ignore[arg-type]


@given(st.lists(st.lists(st.integers())))
def test_packed_objects_are_a_sequence(items: list[list[int]]) -> None:
    packed = Packed(items)
    assert list(packed) == items
    assert packed[1:] == items[1:]
    assert [packed[-1]] == items[-1:] if items else len(packed) == 0
    with pytest.raises(IndexError, match=f"there is no item {len(items)} of {len(items)}"):
        packed[len(items)]
