"""What the visible-token encoders of Twins and PVT have in common: four stages, or any number.

Before each convolution that reaches beyond a cell (position encoding, overlapping embedding), a
hidden token or pixel counts as zero; in attention and norms it does not exist. With nothing hidden
that is the dense backbone.

Shapes: B batch, N visible tokens of a stage, C channels, K visible units.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from triptych.mim.encoder import VisibleEncoder, apply_norm, visible_tokens
from triptych.mim.layout import layout_of, require_image_size, resolve_image_size
from triptych.mim.reduced_attention import cell_side, check_reduction
from triptych.mim.sparse_conv import convolve_cells, sparse_conv2d
from triptych.mim.sparse_conv_plan import Convolution
from triptych.mim.token_plan import MaskPlan, StagePlan, StageShape
from triptych.mim.windows import Lattice, Pair


class VisiblePyramid(VisibleEncoder):
    """Visible-token encoder of a backbone whose stages halve the grid.

    A mask unit is one token of the last stage.

    Args:
        backbone: the model whose modules are shared.
        image_size: (height, width) in pixels, for a backbone that does not know it and callers
            that plan masks without images.
        lattice: of windows, if it has any.

    Raises:
        ValueError: the backbone has parts that this encoder does not know, or takes images of
            another size.
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_size: Pair | None = None,
        lattice: Lattice | str = Lattice.backbone,
    ) -> None:
        layout = layout_of(backbone)
        super().__init__(backbone, layout.stride, Lattice(lattice))
        self._patch, self._fixed = layout.patch, layout.fixed
        self._image_size = resolve_image_size(layout, image_size)
        self._check_reductions()

    @property
    def image_size(self) -> Pair:
        """See :attr:`VisibleEncoder.image_size`."""
        return require_image_size(self._image_size, self.backbone)

    @property
    def fixed_size(self) -> bool:
        """See :attr:`VisibleEncoder.fixed_size`."""
        return self._fixed

    def stage_blocks(self) -> list[list[Any]]:
        """The blocks of each stage."""
        raise NotImplementedError

    def stage_convolutions(self) -> list[list[nn.Conv2d]]:
        """The convolutions of each stage that reach beyond a cell."""
        raise NotImplementedError

    def run_stage(self, number: int, x: Tensor, plan: MaskPlan) -> Tensor:
        """Tokens (B, N, C) after stage ``number``; ``x`` are images or the tokens before."""
        raise NotImplementedError

    def stage_windows(self, blocks: list[Any]) -> tuple[tuple[Pair, Pair], ...]:
        """Window and shift of the blocks that attend in windows."""
        return ()

    def stage_shapes(self, image_size: Pair) -> tuple[StageShape, ...]:
        """See :meth:`VisibleEncoder.stage_shapes`."""
        shapes = []
        convolutions = self.stage_convolutions()
        for number, blocks in enumerate(self.stage_blocks()):
            stride = self._patch * 2**number
            shapes.append(
                StageShape(
                    grid=(image_size[0] // stride, image_size[1] // stride),
                    channels=blocks[0].mlp.fc1.in_features,
                    windows=self.stage_windows(blocks),
                    cells=tuple(cell_side(attn) for attn in _reducing(blocks)),
                    convolutions=tuple(Convolution.of(conv) for conv in convolutions[number]),
                )
            )
        return tuple(shapes)

    def encode(self, images: Tensor, plan: MaskPlan) -> Tensor:
        """See :meth:`VisibleEncoder.encode`."""
        return self.stage_outputs(images, plan)[-1]

    def stage_outputs(self, images: Tensor, plan: MaskPlan) -> list[Tensor]:
        """Visible tokens (B, N, C) after each stage; the last ones after the final norm."""
        x, outputs = images, []
        for number in range(len(plan.stages)):
            x = self.run_stage(number, x, plan)
            outputs.append(x)
        return outputs

    def _check_reductions(self) -> None:
        stages = self.stage_blocks()
        for number, blocks in enumerate(stages):
            for index, block in enumerate(blocks):
                if hasattr(block.attn, "kv"):
                    unit = 2 ** (len(stages) - 1 - number)
                    check_reduction(block.attn, unit, f"block {index} of stage {number}")


def merge_cells(embed: Any, x_BNC: Tensor, plan: StagePlan, shared: bool) -> Tensor:
    """Patch embedding of 2 x 2 tokens, which do not overlap, on visible tokens."""
    assert plan.children is not None  # every stage but the first has them
    x_BNC = convolve_cells(embed.proj, x_BNC, plan.children, shared)
    return apply_norm(embed.norm, x_BNC, visible_tokens(plan))


def convolve_tokens(conv: nn.Conv2d, x_BNC: Tensor, plan: StagePlan, shared: bool) -> Tensor:
    """A convolution that reaches beyond a cell, to the visible tokens of the stage of ``plan``."""
    assert plan.by_unit is not None  # there is one wherever there are convolutions
    return sparse_conv2d(conv, x_BNC, plan.convolutions[Convolution.of(conv)], plan.by_unit, shared)


def _reducing(blocks: list[Any]) -> list[Any]:
    attentions = [block.attn for block in blocks if hasattr(block.attn, "kv")]
    return [attn for attn in attentions if cell_side(attn) > 1]
