"""Tokens of an image as points in the plane: t-SNE layer by layer (arXiv 2210.07646).

Shapes: N grid tokens, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.manifold import TSNE
from torch import Tensor, nn

from triptych.visualization.capture import capture
from triptych.visualization.display import to_pixels
from triptych.visualization.figures.embedding import embedding_figure
from triptych.visualization.object_tokens import object_tokens
from triptych.visualization.perturbations import Grid
from triptych.visualization.picture import Picture
from triptych.visualization.probe_set import ProbeSet

PERPLEXITY = 30.0
# After 250 of early exaggeration as many again settle a few hundred tokens.
ITERATIONS = 500
_IMAGES, _LAYERS = 2, 3
SEED = 0


@dataclass(frozen=True)
class Embedding:
    """Attributes:
    points: (N, 2).
    owners: (N,), object of each token, -1 for none.
    """

    image: int
    block: str
    level: int
    grid: Grid
    points: np.ndarray
    owners: np.ndarray


def token_embedding(hidden_NC: Tensor, seed: int = SEED) -> np.ndarray:
    """t-SNE of tokens in two dimensions, (N, 2); started from principal components.

    Perplexity 30, or a third of the tokens less one where there are few.

    Raises:
        ValueError: fewer than four tokens.
    """
    count = len(hidden_NC)
    if count < 4:
        raise ValueError(f"{count} tokens cannot be laid out; 4 or more are needed")
    perplexity = min(PERPLEXITY, (count - 1) / 3)
    fitted = TSNE(2, perplexity=perplexity, init="pca", max_iter=ITERATIONS, random_state=seed)
    return fitted.fit_transform(hidden_NC.numpy(force=True).astype(np.float64))


def owners_of(probe: ProbeSet, image: int, grid: Grid) -> np.ndarray:
    """(N,), the object that covers 40 % of a token, -1 for none or where the grid does not fit."""
    owner = np.full(grid[0] * grid[1], -1)
    divides = probe.size[0] % grid[0] == 0 and probe.size[1] % grid[1] == 0
    if probe.names[image] and divides:
        for number, tokens in enumerate(object_tokens(probe.masks(image), grid)):
            owner[tokens.numpy()] = number
    return owner


def token_embeddings(model: nn.Module, probe: ProbeSet) -> list[Embedding]:
    """Two images after the first, a middle and the last block; images of many objects first."""
    order = sorted(range(len(probe)), key=lambda index: (-len(probe.names[index]), index))
    chosen = sorted(order[:_IMAGES])
    device = next(model.parameters()).device
    images = probe.images()[chosen].to(device)
    captured = capture(model, images, attention=False, norms=False)
    depth = len(captured.blocks)
    levels = sorted({round(part * (depth - 1) / (_LAYERS - 1)) for part in range(_LAYERS)})
    found = []
    for row, image in enumerate(chosen):
        for level in levels:
            block = captured.blocks[level]
            hidden_NC = block.hidden[row, block.prefix_tokens :].float().cpu()
            if len(hidden_NC) < 4:
                continue
            points = token_embedding(torch.nan_to_num(hidden_NC))
            owners = owners_of(probe, image, block.grid)
            found.append(Embedding(image, block.name, level + 1, block.grid, points, owners))
    return found


def embedding_gallery(model: nn.Module, probe: ProbeSet) -> Picture | None:
    """``embedding``: t-SNE of the tokens of two images; None where there are too few tokens."""
    embeddings = token_embeddings(model, probe)
    if not embeddings:
        return None
    images = list(dict.fromkeys(one.image for one in embeddings))
    pixels = dict(zip(images, to_pixels(probe.shown()[images]), strict=True))
    guess = " Objects are guessed from the pixels." if probe.estimated else ""
    colours = (
        "A colour for each object, grey crosses for the background"
        if bool(probe.objects.any())
        else "The data has no masks: a token has the mean colour of its pixels"
    )
    return Picture(
        name="embedding",
        title="Tokens in the plane",
        caption=(
            "t-SNE (perplexity 30, started from principal components, fixed seed) of the grid "
            f"tokens of two images after the first, a middle and the last block. {colours}; axes "
            f"have no unit, and distances between far clusters mean nothing.{guess}"
        ),
        figure=embedding_figure(embeddings, pixels, probe.names, title="Tokens in the plane"),
        rows=[
            {
                "image": one.image,
                "block": one.block,
                "level": one.level,
                "row": token // one.grid[1],
                "column": token % one.grid[1],
                "object": int(one.owners[token]),
                "name": probe.names[one.image][owner] if (owner := one.owners[token]) >= 0 else "",
                "x": float(one.points[token, 0]),
                "y": float(one.points[token, 1]),
            }
            for one in embeddings
            for token in range(len(one.points))
        ],
    )
