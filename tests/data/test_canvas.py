"""The published resize rule, one canvas for all, and the way back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triptych.data.canvas import (
    ResizeRule,
    boxes_to_original,
    lay_boxes,
    lay_image,
    lay_masks,
    masks_to_original,
)

SIDES = st.integers(8, 40)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ((480, 640), (800, 1067)),
        ((640, 480), (1067, 800)),
        ((426, 640), (800, 1202)),
        ((240, 640), (500, 1333)),  # the long side binds
        ((800, 1333), (800, 1333)),
        ((1500, 3000), (667, 1333)),
    ],
)
def test_resize_rule_is_the_published_one(
    image: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert ResizeRule(800, 1333).size(*image) == expected


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 90), st.integers(90, 200))
def test_every_image_fits_into_the_long_side(h: int, w: int, short: int, long: int) -> None:
    height, width = ResizeRule(short, long).size(h, w)
    assert 1 <= min(height, width) <= short
    assert max(height, width) <= long
    assert min(height, width) == short or max(height, width) == long


def test_sides_that_contradict_each_other_are_refused() -> None:
    for sides in ((900, 800, ()), (480, 800, (480, 1000)), (0, 800, ())):
        with pytest.raises(ValueError, match=r"a short side must be in 1 … 800, the long side"):
            ResizeRule(*sides)


def test_an_image_that_needs_no_resizing_lies_as_it_is() -> None:
    image, canvas = torch.rand(3, 5, 6), torch.zeros(3, 8, 8)
    lay_image(image, (5, 6), canvas)
    assert torch.equal(canvas[:, :5, :6], image)
    assert canvas[:, 5:].abs().sum() == canvas[:, :, 6:].abs().sum() == 0
    lay_image(image, (5, 6), canvas, flipped=True)
    assert torch.equal(canvas[:, :5, :6], image.flip(2))


def test_an_image_larger_than_the_canvas_is_refused() -> None:
    sentence = "image of 9 × 6 pixels does not fit on a canvas of 8 × 8"
    with pytest.raises(ValueError, match=sentence):
        lay_image(torch.rand(1, 9, 6), (9, 6), torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match=sentence):
        lay_masks(torch.ones(1, 9, 6, dtype=torch.bool), (9, 6), (8, 8))


def rectangle(box: list[int], h: int, w: int) -> torch.Tensor:
    left, top, right, bottom = box
    mask = torch.zeros(1, h, w, dtype=torch.bool)
    mask[:, top:bottom, left:right] = True
    return mask


@given(SIDES, SIDES, SIDES, st.booleans(), st.data())
def test_boxes_move_with_their_masks(
    h: int, w: int, short: int, flipped: bool, data: st.DataObject
) -> None:
    left, top = data.draw(st.integers(0, w - 4)), data.draw(st.integers(0, h - 4))
    right, bottom = data.draw(st.integers(left + 4, w)), data.draw(st.integers(top + 4, h))
    box = [left, top, right, bottom]
    size = ResizeRule(short, 64).size(h, w)
    mask = lay_masks(rectangle(box, h, w), size, (64, 64), flipped=flipped)[0]
    laid = lay_boxes(torch.tensor([box], dtype=torch.float32), (h, w), size, flipped=flipped)
    # A pixel belongs to the mask where its centre is in the box.
    rows, columns = (torch.arange(64) + 0.5 for _ in range(2))
    x0, y0, x1, y1 = laid[0].tolist()
    eps = 1e-3
    inner = ((rows > y0 + eps) & (rows < y1 - eps))[:, None] & (
        (columns > x0 + eps) & (columns < x1 - eps)
    )
    outer = ((rows > y0 - eps) & (rows < y1 + eps))[:, None] & (
        (columns > x0 - eps) & (columns < x1 + eps)
    )
    assert bool((mask | ~inner).all())
    assert bool((outer | ~mask).all())


@given(SIDES, SIDES, SIDES, st.integers(0, 2**31))
def test_boxes_come_back(h: int, w: int, short: int, seed: int) -> None:
    corners = torch.rand(5, 4, generator=torch.Generator().manual_seed(seed))
    low, high = torch.minimum(corners[:, :2], corners[:, 2:]), corners.clamp(0.5)[:, 2:]
    boxes = torch.cat([low, torch.maximum(low, high)], 1) * torch.tensor([w, h, w, h])
    size = ResizeRule(short, 64).size(h, w)
    laid = lay_boxes(boxes, (h, w), size)
    assert torch.allclose(boxes_to_original(laid, (h, w), size), boxes, atol=1e-4)


def test_boxes_beyond_the_image_are_cut() -> None:
    boxes = torch.tensor([[-3.0, 2.0, 90.0, 70.0]])
    assert boxes_to_original(boxes, (10, 20), (20, 40)).tolist() == [[0, 1, 20, 10]]


def test_masks_come_back() -> None:
    mask = rectangle([2, 3, 9, 7], 10, 15)
    size = (30, 45)
    laid = lay_masks(mask, size, (48, 48))
    assert torch.equal(masks_to_original(laid, (10, 15), size), mask)
    probable = masks_to_original(laid.float(), (10, 15), size)
    assert torch.equal(probable > 0.5, mask)
    assert torch.equal(masks_to_original(mask.float(), (10, 15), (10, 15)), mask.float())
