"""A fixed set of images with objects, on which every model of a study is asked the same questions.

Shapes: B images, C channels, Y and X pixels, O objects of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from triptych.visualization.foreground import estimated_objects
from triptych.visualization.object_tokens import COVERAGE, foreground_tokens, object_tokens
from triptych.visualization.perturbations import (
    Grid,
    Occlusion,
    choose_cells,
    generator_of,
    occlude,
    shuffle_cells,
)

LEAST_TOKENS = 3
LEAST_OBJECTS = 2
# Cells to a side that occlusion may cut an image into, the published 14 first.
_CELLS = (14, 16, 8, 7, 4)
_LEAST_CELL = 4


@dataclass(frozen=True)
class ProbeSet:
    """Images with the masks and class names of their objects.

    Attributes:
        pixels: uint8 (B, C, Y, X).
        instances: uint8 (B, Y, X), 0 for background and o + 1 for object o.
        names: class names of each image's objects.
        labels: (B,) class of each image; None where it has none.
        mean, std: normalisation that the model was trained with, of pixels in [0, 1].
        estimated: True where the masks are a guess from the pixels.
    """

    pixels: Tensor
    instances: Tensor
    names: tuple[tuple[str, ...], ...]
    labels: Tensor | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    estimated: bool = False

    def __post_init__(self) -> None:
        batch, channels, *size = self.pixels.shape
        if self.pixels.dtype != torch.uint8 or self.instances.shape != (batch, *size):
            raise ValueError(
                f"pixels {self.pixels.dtype} of shape {tuple(self.pixels.shape)} and instances "
                f"of shape {tuple(self.instances.shape)} do not fit; give uint8 (images, "
                "channels, height, width) and (images, height, width)"
            )
        if len(self.names) != batch or len(self.mean) != channels or len(self.std) != channels:
            raise ValueError(
                f"{len(self.names)} lists of names, {len(self.mean)} means and {len(self.std)} "
                f"standard deviations do not fit {batch} images of {channels} channels"
            )

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def size(self) -> Grid:
        return int(self.pixels.shape[2]), int(self.pixels.shape[3])

    @property
    def objects(self) -> Tensor:
        """Bool (B, Y, X): on any object."""
        return self.instances > 0

    @property
    def has_groups(self) -> bool:
        """Whether an image has two objects, so that clusters of tokens can be asked after."""
        return max(map(len, self.names), default=0) >= LEAST_OBJECTS

    def masks(self, image: int) -> Tensor:
        """Bool (O, Y, X)."""
        numbers = torch.arange(1, len(self.names[image]) + 1, dtype=torch.uint8)
        return self.instances[image] == numbers[:, None, None]

    def images(self) -> Tensor:
        """Float (B, C, Y, X) as the model takes them."""
        shape = (1, -1, 1, 1)
        mean, std = torch.tensor(self.mean).view(shape), torch.tensor(self.std).view(shape)
        return (self.pixels.float() / 255 - mean) / std

    def shown(self) -> Tensor:
        """Float (B, C, Y, X) in [0, 1]."""
        return self.pixels.float() / 255

    def object_tokens(self, image: int, grid: Grid) -> list[Tensor] | None:
        """Tokens of each object on a token grid, or None where nothing can be asked of them.

        That is where the image has fewer than two objects, one of them fewer than three tokens
        (40 % coverage), or the grid does not divide the image (arXiv 2210.07646, released code).
        """
        height, width = self.size
        if len(self.names[image]) < LEAST_OBJECTS or height % grid[0] or width % grid[1]:
            return None
        tokens = object_tokens(self.masks(image), grid, least=COVERAGE)
        return tokens if min(map(len, tokens)) >= LEAST_TOKENS else None

    def take(self, indices: Sequence[int]) -> ProbeSet:
        """The images at ``indices``."""
        places = list(indices)
        return replace(
            self,
            pixels=self.pixels[places],
            instances=self.instances[places],
            names=tuple(self.names[index] for index in places),
            labels=None if self.labels is None else self.labels[places],
        )

    def occluded(self, kind: Occlusion, ratio: float, *, seed: int = 0) -> ProbeSet:
        """Cells blackened by :func:`~triptych.visualization.perturbations.choose_cells`.

        What is occluded belongs to no object any more, as in the released code; which images are
        compared does not change with it.
        """
        grid = occlusion_grid(self.size)
        pixels, instances = [], []
        for index in range(len(self)):
            foreground_G = foreground_tokens(self.objects[index : index + 1], grid)
            cells = choose_cells(kind, ratio, foreground_G, generator_of(seed, index))
            pixels.append(occlude(self.pixels[index], cells, grid))
            instances.append(occlude(self.instances[index], cells, grid))
        return replace(self, pixels=torch.stack(pixels), instances=torch.stack(instances))

    def shuffled(self, side: int, *, seed: int = 0) -> ProbeSet:
        """Image and masks cut into ``side`` x ``side`` cells and shuffled alike."""
        grid = (side, side)
        pixels, instances = [], []
        for index in range(len(self)):
            order = torch.from_numpy(generator_of(seed, index).permutation(side * side))
            pixels.append(shuffle_cells(self.pixels[index], order, grid))
            instances.append(shuffle_cells(self.instances[index], order, grid))
        return replace(self, pixels=torch.stack(pixels), instances=torch.stack(instances))


def occlusion_grid(size: Grid) -> Grid:
    """Cells that occlusion cuts an image into: 14 to a side, or the nearest that divides it.

    Raises:
        ValueError: nothing divides it into cells of 4 pixels or more.
    """
    for side in _CELLS:
        if all(edge % side == 0 and edge // side >= _LEAST_CELL for edge in size):
            return side, side
    raise ValueError(
        f"images of {size[0]}x{size[1]} pixels cannot be cut into cells; their sides must be "
        f"multiples of one of {list(_CELLS)}, with {_LEAST_CELL} pixels or more to a cell"
    )


def shuffle_labels(objects: Sequence[Tensor], random: np.random.Generator) -> list[Tensor]:
    """A control: the tokens of all objects dealt out anew, as many to each object as before."""
    mixed = torch.cat(list(objects))[torch.from_numpy(random.permutation(sum(map(len, objects))))]
    return [part.sort().values for part in mixed.split([len(tokens) for tokens in objects])]


def estimated_probe_set(
    pixels: Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    labels: Tensor | None = None,
) -> ProbeSet:
    """Images (uint8) without masks: one object each, what stands out from the border (Otsu)."""
    objects = estimated_objects(pixels.float() / 255).to(torch.uint8)
    return ProbeSet(pixels, objects, (("object",),) * len(pixels), labels, mean, std, True)


def bare_probe_set(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> ProbeSet:
    """Images (uint8) without masks and labels: nothing is known of objects, nor guessed."""
    batch, _, *size = pixels.shape
    nothing = torch.zeros((batch, *size), dtype=torch.uint8)
    return ProbeSet(pixels, nothing, ((),) * batch, None, mean, std)
