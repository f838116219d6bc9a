"""The pictures of what DTN learned, for any backbone: they need its layers, no forward pass."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from triptych.visualization.figures.kernels import kernels_figure
from triptych.visualization.figures.mixing import mixing_figure
from triptych.visualization.picture import Picture
from triptych.visualization.position_kernels import dtn_layers, kernel_rows, position_kernels

_KERNELS_CAPTION = (
    "Share of each token in the statistics of the token in the middle of the grid (open circle), "
    "as each head's position weights give it, on one colour scale; ticks count tokens from that "
    "token. The cross is the mean offset of the sources, the ellipse one standard deviation "
    "around it; below, for up to 12 heads, the offset (down, right) ± the overall deviation in "
    "tokens."
)
_MIXING_CAPTION = (
    "λ, the share of the token's own mean and variance in those that DTN normalises with (1: "
    "LayerNorm's statistics alone, 0: the neighbourhood's alone), at the start and after every "
    "epoch of each stage; a line for each head, one scale, which need not be all of 0 to 1. The "
    "table also holds centre and width of the position kernels over training."
)
_NO_CURVES = (
    " There is no picture of λ over training: this run was trained when DTN's curves were not "
    "yet logged. The table holds its last λ."
)


def dtn_gallery(
    model: nn.Module, curves: list[dict[str, object]], *, brief: bool = False
) -> list[Picture]:
    """``dtn_mixing`` and ``dtn_kernels`` of a trained model; nothing where it has no DTN.

    Args:
        model: any module that holds DynamicTokenNorm layers.
        curves: rows as :func:`mixing_figure` takes them; without any, the kernels' caption says
            that the picture over training is missing.
        brief: ``dtn_kernels`` alone.
    """
    layers = dtn_layers(model)
    if not layers:
        return []
    kernels = Picture(
        name="dtn_kernels",
        title="Position kernels of DTN",
        caption=_KERNELS_CAPTION + ("" if curves else _NO_CURVES),
        figure=kernels_figure(
            {path: position_kernels(norm) for path, norm in layers.items()},
            title="Position kernels of DTN",
        ),
        rows=kernel_rows(layers),
    )
    return [kernels] if brief else [*_mixing(curves), kernels]


def _mixing(curves: Sequence[dict[str, object]]) -> list[Picture]:
    if not curves:
        return []
    return [
        Picture(
            name="dtn_mixing",
            title="Mixing ratios of DTN over training",
            caption=_MIXING_CAPTION,
            figure=mixing_figure(curves, title="Mixing ratios of DTN over training"),
            rows=list(curves),
        )
    ]
