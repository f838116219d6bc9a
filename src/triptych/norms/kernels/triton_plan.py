"""How a DTN problem is cut up for the device: what its kernels know when they are compiled."""

from __future__ import annotations

from dataclasses import dataclass

from triptych.norms.kernels.cpu import Geometry

# A matrix product on the device takes no side below this.
_SHORTEST = 16
# Values at hand at once: as many as the backward pass holds in registers.
_CHUNK = 1024


@dataclass(frozen=True)
class Plan:
    """One compilation; ``block`` channels of a head make a tile, which is walked in chunks of
    ``rows`` rows, then of ``columns`` columns. ``hidden``: x holds hidden tokens.
    """

    height: int
    width: int
    prefix: int
    heads: int
    features: int
    released: bool
    mixed: bool
    masked: bool
    hidden: bool
    eps: float
    block: int
    rows: int
    columns: int
    group: int
    # Three products in tf32 keep the precision of float32, and the tensor cores.
    precision: str = "tf32x3"

    @property
    def channels(self) -> int:
        return self.heads * self.features

    @property
    def kept(self) -> int:
        """Statistics of a token; mean and variance are the last two."""
        return 2 + (self.heads if self.released else 0)

    @property
    def blocks(self) -> int:
        return -(-self.features // self.block)

    @property
    def parts(self) -> int:
        """Tiles that hold a part of each token."""
        return self.heads * self.blocks

    @property
    def scratch(self) -> int:
        """Floats of a program's own: two moments, and a slope for each place of the grid."""
        return self.height * self.width * (2 * self.block + 1)

    @property
    def warps(self) -> int:
        """Warps of a program that works on tiles."""
        return 8 if max(self.padded_y, self.padded_x) > 32 else 4

    @property
    def padded_y(self) -> int:
        return power_of_two(self.height, _SHORTEST)

    @property
    def padded_x(self) -> int:
        return power_of_two(self.width, _SHORTEST)

    @property
    def padded_heads(self) -> int:
        return power_of_two(self.heads)

    @property
    def padded_features(self) -> int:
        return power_of_two(self.features)

    @property
    def padded_parts(self) -> int:
        return power_of_two(self.parts)


def power_of_two(least: int, floor: int = 1) -> int:
    """The next power of two, at least ``floor``."""
    return max(floor, 1 << (least - 1).bit_length())


def make_plan(
    geometry: Geometry, *, heads: int, features: int, mixed: bool, masked: bool, hidden: bool
) -> Plan:
    """Choose tile and chunks for a problem."""
    block = min(32, power_of_two(features, _SHORTEST))
    padded_y = power_of_two(geometry.height, _SHORTEST)
    padded_x = power_of_two(geometry.width, _SHORTEST)
    # With hidden tokens every row and every column has a kernel of its own.
    rows = 1 if masked else _chunk(padded_x * block, geometry.height)
    columns = 1 if masked else _chunk(padded_y * block, geometry.width)
    token = power_of_two(heads) * power_of_two(features)
    return Plan(
        height=geometry.height,
        width=geometry.width,
        prefix=geometry.prefix,
        heads=heads,
        features=features,
        released=geometry.released,
        mixed=mixed,
        masked=masked,
        hidden=hidden,
        eps=geometry.eps,
        block=block,
        rows=rows,
        columns=columns,
        group=max(1, 2048 // token),
    )


def _chunk(strip: int, side: int) -> int:
    return min(max(1, _CHUNK // strip), power_of_two(side))
