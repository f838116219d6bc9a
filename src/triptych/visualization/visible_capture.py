"""Capture of a visible-token encoder, which runs a backbone's blocks on visible tokens alone.

Shapes: B images, P plans (1 for the whole batch, or B), N visible tokens of a block (prefix tokens
first, then those of the grid in row-major order), T tokens of its grid, H heads, D channels of a
head, Z padding positions.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from triptych.mim.encoder import VisibleEncoder
from triptych.mim.swin import VisibleSwin
from triptych.mim.token_plan import MaskPlan, StagePlan
from triptych.mim.windows import Lattice, resolve, window_lattice
from triptych.visualization.attention_layers import AttentionReader, Kept, merge_heads
from triptych.visualization.attention_map import AttentionMap
from triptych.visualization.block_layout import BlockLayout
from triptych.visualization.capture import (
    BlockCapture,
    Capture,
    block_capture,
    evaluating,
)
from triptych.visualization.layouts import backbone_layout
from triptych.visualization.readers import reader_of
from triptych.visualization.tapes import AttentionTape, BlockTape


class VisibleSwinReader(AttentionReader):
    """Swin's window attention on visible tokens, however the encoder packs them into rows."""

    def __init__(self, layout: BlockLayout, stage: StagePlan, lattice: Lattice) -> None:
        super().__init__(layout)
        self.sources = {"qkv": self.layer.qkv}
        self.product = self.layer.proj
        window = layout.window
        assert window is not None
        self._lattice = window_lattice(layout.grid, window, layout.shift, lattice)
        self._tokens_PN = stage.tokens.cpu()

    def projections(self, kept: Kept) -> tuple[Tensor, Tensor, Tensor]:
        qkv_BNE = kept["qkv"]
        padding = len(self._lattice.pad_window)
        if padding:
            # The backbone pads with zero tokens, which the linear layer turns into its bias.
            bias = self.layer.qkv.bias
            null = qkv_BNE.new_zeros(qkv_BNE.shape[-1]) if bias is None else bias.to(qkv_BNE)
            null_BZE = null.expand(len(qkv_BNE), padding, -1)
            qkv_BNE = torch.cat((qkv_BNE, null_BZE), 1)
        qkv = qkv_BNE.unflatten(-1, (3, self.layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[:, :, None]
        return query[..., : self._tokens_PN.shape[1], :], key, value

    def bias(self, kept: Kept) -> Tensor:
        """Relative position bias, -inf between windows: (P, 1, H, N, N + Z)."""
        table = self.layer.relative_position_bias_table
        (query_PN, key_PK), (at_PN, of_PK) = self._windows(), self._positions()
        index_PNK = at_PN[:, :, None] - of_PK[:, None] + self._lattice.centre
        apart_PNK = query_PN[:, :, None] != key_PK[:, None]
        index_PNK = index_PNK.masked_fill(apart_PNK, 0).to(table.device)
        bias_PNKH = table[index_PNK].masked_fill(apart_PNK[..., None].to(table.device), -torch.inf)
        return bias_PNKH.permute(0, 3, 1, 2)[:, None]

    def arranged(self, product: Tensor) -> Tensor:
        return merge_heads(product[:, 0])

    def placed(self, probabilities: Tensor, kept: Kept) -> AttentionMap:
        queries, keys = probabilities.shape[-2:]
        device = probabilities.device
        query_PN, key_PK = self._windows()
        together_PNK = query_PN[:, :, None] == key_PK[:, None]
        key_index = torch.arange(keys, device=device)
        return AttentionMap(
            probabilities,
            torch.arange(queries, device=device)[None],
            together_PNK.any(0, keepdim=True).to(device),
            queries,
            key_index=torch.where(key_index < queries, key_index, -1)[None],
            sources=queries,
        )

    def _windows(self) -> tuple[Tensor, Tensor]:
        return self._with_padding(self._lattice.window, self._lattice.pad_window)

    def _positions(self) -> tuple[Tensor, Tensor]:
        return self._with_padding(self._lattice.position, self._lattice.pad_position)

    def _with_padding(self, of_token: Any, of_padding: Any) -> tuple[Tensor, Tensor]:
        """A property of the visible tokens (P, N), and of the keys (P, N + Z)."""
        query_PN = torch.from_numpy(of_token)[self._tokens_PN]
        padding_PZ = torch.from_numpy(of_padding).expand(len(query_PN), -1)
        return query_PN, torch.cat((query_PN, padding_PZ), 1)


def capture_visible(
    encoder: VisibleEncoder,
    images: Tensor,
    mask: Tensor,
    *,
    attention: bool = True,
    norms: bool = True,
) -> Capture:
    """Run ``encoder`` once on the visible part of ``images`` and keep its insides.

    As :func:`triptych.visualization.capture.capture`; tokens of a block are the visible ones, and
    ``visible`` of its capture says where they lie. The output is the latents.

    Args:
        encoder: as `triptych.mim.visible_encoder` makes it.
        images: (B, channels, height, width).
        mask: bool (L,) or (B, L), True = hidden, mask units in row-major order.

    Raises:
        ValueError: images and mask do not fit, or as `capture`.
        RuntimeError: the recomputed attention does not reproduce the layer's own output.
    """
    size = (int(images.shape[-2]), int(images.shape[-1]))
    plan = encoder.plan(mask, size).to(images.device)
    layout = backbone_layout(encoder.backbone, size)
    lattice = resolve(encoder.lattice, hidden=bool(mask.any()))
    with ExitStack() as stack:
        taped = []
        for block in layout.blocks:
            reader = _reader(encoder, block, plan.stages[block.stage], lattice)
            made = AttentionTape(reader, stack) if attention else None
            adds = block.block.get_submodule("drop_path2")
            taped.append((block, BlockTape(block, stack, norms=norms, adds=adds), made))
        stack.enter_context(evaluating(encoder))
        output = encoder(images, mask, plan)
        blocks = tuple(
            block_capture(index, block, tape, made, _visible(plan, block))
            for index, (block, tape, made) in enumerate(taped)
        )
    # What reads the latents reads those of the grid.
    return Capture(blocks, len(blocks), False, size, output)


def _reader(
    encoder: VisibleEncoder, block: BlockLayout, stage: StagePlan, lattice: Lattice
) -> AttentionReader:
    if isinstance(encoder, VisibleSwin):
        return VisibleSwinReader(block, stage, lattice)
    return reader_of(block)


def attention_on_grid(block: BlockCapture) -> Tensor:
    """Attention of visible tokens among all of the grid, (B, H, T, T), prefix tokens left out.

    Rows and columns of tokens that did not run are 0.
    """
    prefix = block.prefix_tokens
    dense_BHNN = block.attention_map.dense()[..., prefix:, prefix:]
    if block.visible is None:
        return dense_BHNN
    tokens = block.grid[0] * block.grid[1]
    batch, heads, count, _ = dense_BHNN.shape
    index_BN = block.visible.to(dense_BHNN.device).expand(batch, -1)
    rows = dense_BHNN.new_zeros(batch, heads, tokens, count)
    rows.scatter_(2, index_BN[:, None, :, None].expand_as(dense_BHNN), dense_BHNN)
    whole = dense_BHNN.new_zeros(batch, heads, tokens, tokens)
    return whole.scatter_(3, index_BN[:, None, None].expand_as(rows), rows)


def _visible(plan: MaskPlan, block: BlockLayout) -> Tensor | None:
    tokens_PN = plan.stages[block.stage].tokens
    return None if tokens_PN.shape[1] == block.grid[0] * block.grid[1] else tokens_PN
