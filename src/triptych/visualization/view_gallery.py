"""Pictures of views: good and bad filters, tokens from level to level, and how views spread.

Shapes: B images, F filters, N patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from triptych.visualization.capture import Capture
from triptych.visualization.display import to_pixels
from triptych.visualization.figures.mosaic import Panel, mosaic_figure
from triptych.visualization.figures.spread import spread_figure
from triptych.visualization.filter_scores import FilterScores, filter_energy, filter_scores
from triptych.visualization.filters import PatchFilters, has_filters, patch_filters
from triptych.visualization.foreground import covered_share, estimated_objects
from triptych.visualization.object_tokens import COVERAGE
from triptych.visualization.picture import Picture
from triptych.visualization.spread_rows import spread_rows
from triptych.visualization.views import DeepViews, deep_views, for_display, global_views

_ESTIMATED = " The data has no masks: an object is what stands out from the image's border (Otsu)."
_VIEWS_CAPTION = (
    "What one filter's coordinate of a token stands for in the pixels: filter times pixels of "
    "every patch, weighted by the token's row of the attention rollout (mean over heads, skip "
    "connections as identity). Level 0 is the patch embedding, level n the output of block n. "
    "Normalised pixels, negatives black, each panel over its maximum; the box marks the token. "
    "Below: effective number of patches. Filter: the best for the image."
)
_BEST, _WORST, _SHOWN_IMAGES, _VIEWED_IMAGES = 4, 2, 4, 2


def view_gallery(
    model: nn.Module,
    captured: Capture,
    images: Tensor,
    pixels: Tensor,
    objects: Tensor | None = None,
) -> list[Picture]:
    """``filters``, ``views`` and ``view_spread`` of one forward pass.

    Filters are scored on the images that show both object and background; where no image does, or
    no linear map leads from pixels to tokens, there are no pictures.

    Args:
        images: (B, C, Y, X) as the model saw them.
        pixels: the same in [0, 1].
        objects: bool (B, Y, X); by default estimated from the pixels.
    """
    if not has_filters(model):
        return []
    note = _ESTIMATED if objects is None else ""
    objects = estimated_objects(pixels) if objects is None else objects
    filters = patch_filters(model)
    share_BN = covered_share(objects, filters.grid(captured.image_size))
    on_object_BN = share_BN >= COVERAGE
    useful = (on_object_BN.any(1) & ~on_object_BN.all(1)).nonzero()[:, 0]
    if len(useful) == 0:
        return []
    scores = filter_scores(filter_energy(images[useful], filters), on_object_BN[useful])
    views = deep_views(captured, images, filters)
    return [
        _filter_picture(filters, scores, images, pixels, useful.tolist(), note),
        _view_picture(views, scores, pixels, share_BN, useful.tolist(), note),
        _spread_picture(captured, views, objects, note),
    ]


def _filter_picture(
    filters: PatchFilters,
    scores: FilterScores,
    images: Tensor,
    pixels: Tensor,
    useful: list[int],
    note: str,
) -> Picture:
    ranked = scores.auroc.mean(0).argsort(descending=True).tolist()
    chosen = [*ranked[:_BEST], *ranked[max(_BEST, filters.count - _WORST) :]]
    kernels = to_pixels(for_display(filters.weight[chosen]))
    shown = useful[:_SHOWN_IMAGES]
    views = for_display(global_views(images[shown], filters, chosen))
    rows: list[list[Panel | None]] = [[None, *(Panel(kernel) for kernel in kernels)]]
    for row, image in enumerate(shown):
        panels = to_pixels(views[row])
        auroc = scores.auroc[row, chosen].tolist()
        own = [Panel(one, f"AUROC {value:.2f}") for one, value in zip(panels, auroc, strict=True)]
        rows.append([Panel(to_pixels(pixels[image : image + 1])[0]), *own])
    names = [f"filter {index}" for index in chosen]
    title = "Filters and their level-0 views: four best and two worst on average"
    return Picture(
        name="filters",
        title="Good and bad filters",
        caption=(
            "Top row: filters of the token embedding (counted from 0), the four that show objects "
            f"best and the two that show them worst, on average over {len(useful)} images. Below: "
            "filter times pixels, patch by patch (normalised pixels, negatives black, each panel "
            "over its maximum). AUROC: how often a patch of an object has more energy in its view "
            "than another patch; from 0.75 on, and among the best 5 % of filters, a filter counts "
            f"as good.{note}"
        ),
        figure=mosaic_figure(
            rows,
            columns=["input", *names],
            labels=["filter", *(f"image {image}" for image in shown)],
            title=title,
        ),
        rows=_score_rows(scores, useful),
    )


def _score_rows(scores: FilterScores, useful: list[int]) -> list[dict[str, object]]:
    good = scores.good().tolist()
    auroc, share = scores.auroc.tolist(), scores.object_share.tolist()
    return [
        {
            "image": image,
            "filter": index,
            "auroc": auroc[row][index],
            "object_share": share[row][index],
            "good": good[row][index],
        }
        for row, image in enumerate(useful)
        for index in range(len(auroc[row]))
    ]


def _view_picture(
    views: DeepViews,
    scores: FilterScores,
    pixels: Tensor,
    share_BN: Tensor,
    useful: list[int],
    note: str,
) -> Picture:
    levels = sorted({round(part * (views.levels - 1) / 3) for part in range(4)})
    panels: list[list[Panel | None]] = []
    labels: list[str] = []
    rows: list[dict[str, object]] = []
    for row, image in enumerate(useful[:_VIEWED_IMAGES]):
        index = int(scores.auroc[row].argmax())
        shown = to_pixels(pixels[image : image + 1])[0]
        for name, patch in _tokens_to_show(views, share_BN[image]):
            labels.append(f"image {image}\nfilter {index}\n{name}")
            line: list[Panel | None] = [Panel(shown, box=_box(patch, views.grids[0]))]
            for level in levels:
                weights_N = _token_weights(views, image, level, patch)
                if weights_N is None:
                    line.append(None)
                    continue
                line.append(_view_panel(views, image, level, patch, index, weights_N))
                rows += _weight_rows(image, index, name, level, weights_N)
            panels.append(line)
    return Picture(
        name="views",
        title="Views from level to level",
        caption=_VIEWS_CAPTION + note,
        figure=mosaic_figure(
            panels,
            columns=["input", *(f"level {level}" for level in levels)],
            labels=labels,
            title="Views from level to level",
        ),
        rows=rows,
    )


def _token_weights(views: DeepViews, image: int, level: int, patch: int | None) -> Tensor | None:
    """The patches' shares (N,) in a patch's token; in the class token (None) once it has joined."""
    if patch is None and views.prefixes[max(level - 1, 0)] == 0:
        return None
    return views.weights(level, _token(views, level, patch))[image]


def _view_panel(
    views: DeepViews, image: int, level: int, patch: int | None, index: int, weights_N: Tensor
) -> Panel:
    view = views.view_of(image, level, _token(views, level, patch), index)
    return Panel(to_pixels(for_display(view)[None])[0], _effective(weights_N))


def _token(views: DeepViews, level: int, patch: int | None) -> int:
    return 0 if patch is None else views.token_of(level, patch)


def _tokens_to_show(views: DeepViews, share_N: Tensor) -> list[tuple[str, int | None]]:
    """The class token, the patch most on an object, nearest the centre, and the emptiest one."""
    rows, cols = views.grids[0]
    place = torch.arange(len(share_N))
    off_centre = ((place // cols - (rows - 1) / 2) ** 2 + (place % cols - (cols - 1) / 2) ** 2) / (
        rows * rows + cols * cols
    )
    share_N = share_N.cpu()
    on, off = (
        int((share_N - 1e-3 * off_centre).argmax()),
        int((share_N - 1e-3 * off_centre).argmin()),
    )
    named: list[tuple[str, int | None]] = [("object patch", on), ("background", off)]
    return [("class token", None), *named] if views.prefixes[-1] else named


def _box(patch: int | None, grid: tuple[int, int]) -> tuple[float, float, float, float] | None:
    if patch is None:
        return None
    rows, cols = grid
    return patch // cols / rows, patch % cols / cols, 1 / rows, 1 / cols


def _effective(weights_N: Tensor) -> str:
    total = weights_N.sum()
    if total <= 0:
        return "no patch"
    return f"{(total.square() / weights_N.square().sum()).item():.1f} of {len(weights_N)}"


def _weight_rows(
    image: int, index: int, name: str, level: int, weights_N: Tensor
) -> list[dict[str, object]]:
    return [
        {
            "image": image,
            "filter": index,
            "token": name,
            "level": level,
            "patch": patch,
            "weight": weight,
        }
        for patch, weight in enumerate(weights_N.tolist())
    ]


def _spread_picture(captured: Capture, views: DeepViews, objects: Tensor, note: str) -> Picture:
    rows = spread_rows(captured, views, objects)
    return Picture(
        name="view_spread",
        title="Spread of views over the image",
        caption=(
            "Means over tokens and images of the shares that patches have in a token by attention "
            "rollout. Effective patches: 1/Σp², over the number of patches. Own patch: the token's "
            "own, while the grid is that of the first level. Object over background: mean share of "
            f"object patches over that of the others; dashed: equal.{note}"
        ),
        figure=spread_figure(rows, title="Spread of views over the image"),
        rows=rows,
    )
