"""Masks of objects in COCO's notations: polygons, run lengths, compressed run lengths.

Shapes: H and W image size in pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from triptych.data.errors import DataError

# Three corners: what has fewer numbers covers no pixel, and four would be read as a box.
SHORTEST_POLYGON = 6

Segmentation = list[list[float]] | dict[str, Any]


def decode_mask(segmentation: Segmentation, height: int, width: int) -> Tensor:
    """The mask (H, W), bool, of one object; the parts of several polygons together.

    Raises:
        DataError: it is in none of the three notations, or the run lengths are those of an image
            of another size.
    """
    if isinstance(segmentation, list):
        return _decode_polygons(segmentation, height, width)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise DataError(
            f"a segmentation must be a list of polygons, or run lengths with size and counts; "
            f"got {str(segmentation)[:60]}"
        )
    if tuple(segmentation["size"]) != (height, width):
        raise DataError(
            f"a segmentation has the size {list(segmentation['size'])}, but its image "
            f"[{height}, {width}]"
        )
    counts = segmentation["counts"]
    runs = np.array(counts, np.int64) if isinstance(counts, list) else _run_lengths(counts)
    if (runs < 0).any():
        raise DataError(f"a segmentation has a negative run length, {runs.min()}")
    if runs.sum() != height * width:
        raise DataError(
            f"the run lengths of a segmentation add up to {runs.sum()} pixels, but its image has "
            f"{height * width}"
        )
    return _filled(runs, height, width)


def encode_mask(mask_HW: Tensor) -> dict[str, Any]:
    """The compressed run lengths of a mask (H, W), as text that fits into JSON."""
    pixels = np.asfortranarray(mask_HW.detach().cpu().numpy().astype(np.uint8))
    encoded = coco_mask.encode(pixels)
    return {"size": list(pixels.shape), "counts": encoded["counts"].decode("ascii")}


def _decode_polygons(polygons: list[list[float]], height: int, width: int) -> Tensor:
    whole = [polygon for polygon in polygons if len(polygon) >= SHORTEST_POLYGON]
    if any(len(polygon) % 2 for polygon in whole):
        raise DataError("a polygon of a segmentation has an odd number of coordinates")
    if not whole:
        return torch.zeros(height, width, dtype=torch.bool)
    together = coco_mask.merge(coco_mask.frPyObjects(whole, height, width))
    return _filled(_run_lengths(together["counts"]), height, width)


def _filled(counts: np.ndarray, height: int, width: int) -> Tensor:
    """Run lengths, zeros first and column by column, as a mask."""
    pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return torch.from_numpy(np.ascontiguousarray(pixels.reshape(width, height).T))


def _run_lengths(compressed: str | bytes) -> np.ndarray:
    """The numbers in COCO's compressed form.

    A number is written five bits at a time, low ones first, in characters from "0" on; the sixth
    bit says that more follow, the fifth of the last one that it is negative. From the fourth on a
    number is the difference to the one two before. pycocotools' own decoder is not used because
    it calls NumPy in a way that NumPy 2 deprecates.
    """
    text = compressed.encode("ascii") if isinstance(compressed, str) else compressed
    bits = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    if not len(bits) or bits.min() < 0 or bits.max() > 63 or bits[-1] & 32:
        raise DataError(f"a segmentation has counts that are no run lengths: {text[:20]!r}")
    ends = np.flatnonzero(bits & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    shifts = 5 * (np.arange(len(bits)) - np.repeat(starts, lengths))
    values = np.add.reduceat((bits & 31) << shifts, starts)
    values -= np.where(bits[ends] & 16, np.left_shift(1, 5 * lengths), 0)
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values
