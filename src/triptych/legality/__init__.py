"""Which configurations can run: ranges of single keys, then combinations.

Nothing here imports torch, so a sweep of a hundred cells is checked in a moment, before any work.
"""

from triptych.legality.check import check
from triptych.legality.geometry import stage_grids, stage_widths, total_stride
from triptych.legality.pretraining import mask_unit, visible_units

__all__ = [
    "check",
    "mask_unit",
    "stage_grids",
    "stage_widths",
    "total_stride",
    "visible_units",
]
