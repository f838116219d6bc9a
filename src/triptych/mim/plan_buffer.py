"""A plan's tensors in one buffer: one message from a worker, one copy to a device.

A plan has dozens of small tensors. Sent one by one, each would cost a file descriptor between
processes and a transfer to the device, which together take longer than the planning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 16  # bytes; more than any element has


@dataclass(frozen=True)
class Piece:
    """Where a tensor lies in the buffer."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def of(self, buffer: Tensor) -> Tensor:
        """The tensor, a view of ``buffer``."""
        size = self.dtype.itemsize
        for side in self.shape:
            size *= side
        return buffer[self.offset : self.offset + size].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class PackedPlan:
    """``outline`` is the plan with a :class:`Piece` in place of each tensor."""

    buffer: Tensor
    outline: Any

    @classmethod
    def of(cls, plan: Any) -> PackedPlan:
        """Pack anything whose ``_map`` applies a function to each of its tensors."""
        tensors: list[Tensor] = []
        end = 0

        def place(tensor: Tensor) -> Piece:
            nonlocal end
            piece = Piece(end, tuple(tensor.shape), tensor.dtype)
            end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
            tensors.append(tensor)
            return piece

        outline = plan._map(place)
        buffer = torch.zeros(end, dtype=torch.uint8, device=tensors[0].device)
        pieces = iter(tensors)
        outline._map(lambda piece: piece.of(buffer).copy_(next(pieces)))
        return cls(buffer, outline)

    def unpack(self) -> Any:
        """The plan, its tensors views of the buffer."""
        plan = self.outline._map(lambda piece: piece.of(self.buffer))
        plan.__dict__["packed"] = self  # fills the cached property: it is not packed again
        return plan
