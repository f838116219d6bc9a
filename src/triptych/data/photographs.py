"""Photographs without labels: those that scikit-image carries, or the image files of a folder.

Shapes: B images, C image channels, S image size in pixels.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2 import functional as vision

from triptych.choices import Photograph
from triptych.data.errors import DataError
from triptych.data.folders import MODES, decode

USUAL = (Photograph.chelsea, Photograph.astronaut, Photograph.coffee)
_SHOWN = 8


def photograph_names(root: Path | None, names: Sequence[str] = ()) -> tuple[str, ...]:
    """The photographs that ``names`` choose, all by default.

    Args:
        root: a folder with image files, taken in alphabetical order; None for those of
            scikit-image, of which chelsea, astronaut and coffee are meant by "all".
        names: names of scikit-image's photographs, or of files in ``root``.

    Raises:
        DataError: there is no such folder or photograph, or one is named twice.
    """
    if root is None:
        legal = tuple(str(name) for name in Photograph)
        chosen = tuple(names) or tuple(str(name) for name in USUAL)
        where = "scikit-image's photographs"
    else:
        legal, where = _files(root), str(root)
        chosen = tuple(names) or legal
    twice = [name for name in chosen if chosen.count(name) > 1]
    if twice:
        raise DataError(f"data.photographs names {twice[0]} twice")
    for name in chosen:
        if name not in legal:
            shown = ", ".join(legal[:_SHOWN])
            more = f" and {len(legal) - _SHOWN} more" if len(legal) > _SHOWN else ""
            close = difflib.get_close_matches(name, legal, n=1, cutoff=0.5)
            raise DataError(
                f"data.photographs names {name!r}, which is not among {where}: legal are {shown}"
                f"{more}{f'; did you mean {close[0]}?' if close else '.'}"
            )
    return chosen


def read_photographs(
    root: Path | None, names: Sequence[str], size: int, channels: int
) -> tuple[tuple[str, ...], Tensor]:
    """Names and pixels, uint8 (B, C, S, S).

    The shorter side is resized to S (bicubic, antialiased) and the centre is taken.

    Raises:
        DataError: as :func:`photograph_names`, or a file cannot be decoded.
        ValueError: neither 1 nor 3 channels.
    """
    if channels not in MODES:
        raise ValueError(f"photographs have 1 or 3 channels, not {channels}")
    chosen = photograph_names(root, names)
    images = [_shipped(name, channels) if root is None else decode(root / name, channels)
              for name in chosen]  # fmt: skip
    return chosen, torch.stack([_square(image, size) for image in images])


def _files(root: Path) -> tuple[str, ...]:
    if not root.is_dir():
        raise DataError(f"there is no folder {root} with photographs")
    found = sorted(path.name for path in root.iterdir() if path.suffix.lower() in IMG_EXTENSIONS)
    if not found:
        raise DataError(
            f"{root} holds no photographs; expected at least 1 file ending in "
            f"{', '.join(IMG_EXTENSIONS)}"
        )
    return tuple(found)


def _shipped(name: str, channels: int) -> Image.Image:
    from skimage import data

    return Image.fromarray(getattr(data, name)()).convert(MODES[channels])


def _square(image: Image.Image, size: int) -> Tensor:
    resized = vision.resize(image, [size], interpolation=vision.InterpolationMode.BICUBIC)
    cut = np.array(vision.center_crop(resized, [size, size]))
    pixels = torch.from_numpy(cut)
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()
