"""Dynamic Token Normalization: statistics of a token mixed with those of its neighbourhood.

Shapes: B batch, N tokens that x holds, T tokens of the grid, H heads, D channels a head, C = H·D,
M 1 or B (visible sets).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from triptych.norms.kernels import cpu, fused
from triptych.norms.options import check_options, pooling_cell
from triptych.norms.position_weights import PositionWeights
from triptych.norms.prefix import check_prefix, moments_of_prefix, moments_with_prefix
from triptych.norms.statistics import neighbourhood_moments, token_moments
from triptych.tokens import TokenGrid, VisibleTokens, visible_mask

FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Sums divided by less would lose digits of float32 to underflow.
LEAST_SHARE = 1e-30


class DynamicTokenNorm(nn.Module):
    """Dynamic Token Normalization (Shao et al., ICLR 2022, arXiv 2112.02624).

    Each head mixes, with learned ratios, mean and variance of the token over all channels (LN)
    with those of every channel over the tokens around it, weighted by learned position weights.
    The position weights factorise, so the statistics are exact at full resolution on any grid.

    ``form="released"`` is the official code's arithmetic: tokens are first divided by their root
    mean square in each head, mean and variance have ratios of their own, the LN variance is
    unbiased. ``form="paper"`` is the paper's formula: none of these; its one ratio is
    ``mean_norm_weight`` (with ``mean="token"``: ``var_norm_weight``). ``mean="token"`` mixes the
    variance only (official ``only_var``) and has no ``mean_norm_weight``.

    The state dict has the official names: weight, bias (C), mean_norm_weight, var_norm_weight (H,
    logits of the ratios), pos_proj.weight (H, 3). What has no effect on the output,
    pos_proj.bias and in the paper form the second ratio, is accepted and dropped.

    Args:
        dim: channels C.
        num_heads: heads H; must divide ``dim``.
        grid_size: (height, width) in tokens, or an int for a sequence.
        form: "released" or "paper".
        mean: "mixed" or "token".
        pool_to: average tokens into at most this many cells a side before taking the
            neighbourhood's statistics, as the official code does with 14; None for exact ones.
        prefix_tokens: leading tokens (cls and the like) outside the grid.
        prefix: "own" statistics alone for them, and no neighbourhood holds them; "source", of
            the grid's neighbourhoods, or "member", target too: see :mod:`triptych.norms.prefix`.
            The last two add ``prefix_score`` (H, prefix_tokens), which starts at 0: a prefix
            token counts as the target itself does.
        init: "locality" or "released", see :class:`PositionWeights`.
        eps: added to the mean square and to the variance.

    Raises:
        ValueError: a value is out of its range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid_size: int | tuple[int, int],
        *,
        form: str = "released",
        mean: str = "mixed",
        pool_to: int | None = None,
        prefix_tokens: int = 0,
        prefix: str = "own",
        init: str = "locality",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_options(dim, num_heads, form, mean, prefix_tokens, eps)
        check_prefix(prefix, prefix_tokens, pool_to)
        self.dim, self.num_heads, self.eps = dim, num_heads, eps
        self.form, self.mean = form, mean
        self.prefix_tokens, self.prefix = prefix_tokens, prefix
        self.grid = TokenGrid.of(grid_size)
        self.cell = pooling_cell(self.grid, pool_to)
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.mean_norm_weight: Tensor | None
        self.var_norm_weight: Tensor | None
        self.register_parameter(
            "mean_norm_weight", nn.Parameter(torch.zeros(num_heads)) if mean == "mixed" else None
        )
        own_ratio = form == "released" or mean == "token"
        self.register_parameter(
            "var_norm_weight", nn.Parameter(torch.zeros(num_heads)) if own_ratio else None
        )
        self.prefix_score: Tensor | None
        scores = nn.Parameter(torch.zeros(num_heads, prefix_tokens)) if prefix != "own" else None
        self.register_parameter("prefix_score", scores)
        sequence = isinstance(grid_size, int)
        self.pos_proj = PositionWeights(num_heads, sequence=sequence, init=init)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """Normalise ``x``.

        Args:
            x: (B, N, C), or (B, height, width, C) without prefix tokens.
            visible: bool (T,) or (B, T), the tokens of the grid that exist; all if None. With
                N = prefix + T the absent ones are ignored and come back as 0; with N = prefix +
                number visible, x holds the visible ones only, in row-major order. A sequence may
                be shorter than ``grid_size``: ``visible`` is then as long as the sequence.

        Returns:
            A tensor like x in shape and dtype. Statistics are computed in at least float32.

        Raises:
            ValueError: x or visible does not fit the grid.
        """
        x_BNC = self._flatten(x)
        if self._is_fused(x_BNC, visible):
            y_BNC = self._by_kernel(x_BNC, visible)
        else:
            y_BNC = self._by_torch(x_BNC, visible)
        return y_BNC.view(x.shape)

    def reference(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """What :meth:`forward` computes, by torch operators alone: slower, on any device.

        The way of float64, of pooled statistics, of second derivatives and of torch.func.
        """
        return self._by_torch(self._flatten(x), visible).view(x.shape)

    def _grid_of(self, x_BNC: Tensor, visible: Tensor | None) -> TokenGrid:
        """The grid of this call: shorter than the norm's where a sequence and its mask are."""
        tokens = x_BNC.shape[1] - self.prefix_tokens
        shorter = visible is not None and visible.shape[-1] == tokens < self.grid.count
        sequence = self.pos_proj.sequence and self.cell == (1, 1)
        return TokenGrid(1, tokens) if sequence and shorter else self.grid

    def _is_fused(self, x_BNC: Tensor, visible: Tensor | None) -> bool:
        grid = self._grid_of(x_BNC, visible)
        compiling = torch.compiler.is_compiling()
        fits = (
            x_BNC.dtype in FUSED_DTYPES
            and self.cell == (1, 1)
            and self.prefix == "own"
            and (compiling or not torch._C._are_functorch_transforms_active())
            and max(grid.height, grid.width) <= _longest_side(x_BNC.device.type)
        )
        if visible is None or not fits or x_BNC.device.type != "cpu":
            return fits
        # With hidden tokens the CPU kernel divides by the share of the visible ones, at least a
        # token's own. To look at that would break a compiled graph.
        return not compiling and (
            cpu.own_share(self.pos_proj.weight, grid.height, grid.width) > LEAST_SHARE
        )

    def _by_kernel(self, x_BNC: Tensor, visible: Tensor | None) -> Tensor:
        grid, tokens = self._grid_of(x_BNC, visible), x_BNC.shape[1] - self.prefix_tokens
        mask_MT = None
        if visible is None:
            self._check_full(tokens)
        else:
            mask_MT = visible_mask(visible, grid, x_BNC.shape[0], tokens)
        mean_logit_H, variance_logit_H = self._logits()
        return fused.normalize(
            x_BNC,
            (self.weight, self.bias, mean_logit_H, variance_logit_H, self.pos_proj.weight),
            mask_MT,
            cpu.Geometry(
                grid.height,
                grid.width,
                self.prefix_tokens,
                self.form == "released",
                self.eps,
            ),
        )

    def _by_torch(self, x_BNC: Tensor, visible: Tensor | None) -> Tensor:
        grid, tokens = self._grid_of(x_BNC, visible), x_BNC.shape[1] - self.prefix_tokens
        if visible is None:
            self._check_full(tokens)
            kept = None
        else:
            kept = VisibleTokens.of(visible, grid, x_BNC.shape[0], tokens)
        dtype = torch.promote_types(x_BNC.dtype, torch.float32)
        with torch.autocast(device_type=x_BNC.device.type, enabled=False):
            x_BNHD = x_BNC.to(dtype).unflatten(2, (self.num_heads, -1))
            prefix, rest = x_BNHD.tensor_split((self.prefix_tokens,), 1)
            if kept is not None and kept.index is None:
                rest = kept.on_grid(rest)
            z_BNHD = self._normalize(prefix, rest, grid, kept)
            y_BNC = torch.addcmul(self.bias.to(dtype), z_BNHD.flatten(2), self.weight.to(dtype))
        if kept is not None and kept.index is None:
            y_BNC = self._zero_absent(y_BNC, kept.mask)
        return y_BNC.to(x_BNC.dtype)

    def ratios(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor | None, Tensor]:
        """Share of the token's own mean (None: all of it) and variance, both (H,) in [0, 1]."""
        mean, variance = self._logits()
        return None if mean is None else mean.to(dtype).sigmoid(), variance.to(dtype).sigmoid()

    def _logits(self) -> tuple[Tensor | None, Tensor]:
        mean, variance = self.mean_norm_weight, self.var_norm_weight
        shared = mean if variance is None else variance
        assert shared is not None  # one of the two always exists
        return mean, shared

    def _normalize(
        self, prefix_BPHD: Tensor, x_BNHD: Tensor, grid: TokenGrid, kept: VisibleTokens | None
    ) -> Tensor:
        """All tokens normalised, prefix first; absent ones are 0 in ``x_BNHD``."""
        prefix_BPHD, u_BNHD = self._prepare(prefix_BPHD), self._prepare(x_BNHD)
        weight_H3 = self.pos_proj.weight.to(u_BNHD.dtype)
        around = neighbourhood_moments(u_BNHD, weight_H3, grid, kept, self.cell)
        around_prefix = None
        if self.prefix_score is not None:
            score_HP = self.prefix_score.to(u_BNHD.dtype)
            around = moments_with_prefix(prefix_BPHD, around, score_HP, weight_H3, grid, kept)
            if self.prefix == "member":
                around_prefix = moments_of_prefix(prefix_BPHD, u_BNHD, score_HP, kept)
        z_BNHD = self._standardize(u_BNHD, around)
        if self.prefix_tokens == 0:
            return z_BNHD
        return torch.cat((self._standardize(prefix_BPHD, around_prefix), z_BNHD), 1)

    def _standardize(self, u_BNHD: Tensor, around: tuple[Tensor, Tensor] | None) -> Tensor:
        """Tokens with their own moments mixed with those ``around`` them; their own if None."""
        mean, variance = token_moments(u_BNHD, unbiased=self.form == "released")
        if around is not None:
            mean_ratio_H, variance_ratio_H = self.ratios(u_BNHD.dtype)
            variance = _mix(variance, around[1], variance_ratio_H)
            mean = mean if mean_ratio_H is None else _mix(mean, around[0], mean_ratio_H)
        return (u_BNHD - mean) * (variance + self.eps).rsqrt()

    def _prepare(self, x_BNHD: Tensor) -> Tensor:
        if self.form == "paper":
            return x_BNHD
        return x_BNHD * (x_BNHD.square().mean(3, keepdim=True) + self.eps).rsqrt()

    def _zero_absent(self, y_BNC: Tensor, visible_MT: Tensor) -> Tensor:
        absent = nn.functional.pad(~visible_MT, (self.prefix_tokens, 0), value=False)
        return y_BNC.masked_fill(absent[..., None], 0)

    def _flatten(self, x: Tensor) -> Tensor:
        if x.ndim not in (3, 4) or x.shape[-1] != self.dim:
            raise ValueError(
                f"x must be (B, N, {self.dim}) or (B, H, W, {self.dim}), got {tuple(x.shape)}"
            )
        if x.ndim == 3:
            return x
        if tuple(x.shape[1:3]) != (self.grid.height, self.grid.width) or self.prefix_tokens:
            raise ValueError(
                f"x lies on a {x.shape[1]}x{x.shape[2]} grid, but the norm was made for a "
                f"{self.grid} grid with {self.prefix_tokens} prefix tokens"
            )
        return x.flatten(1, 2)

    def _check_full(self, tokens: int) -> None:
        if tokens != self.grid.count:
            raise ValueError(
                f"x holds {tokens + self.prefix_tokens} tokens, but a {self.grid} grid with "
                f"{self.prefix_tokens} prefix tokens has {self.grid.count + self.prefix_tokens}; "
                f"if some are missing, say which are visible"
            )

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        if self.var_norm_weight is None:
            state_dict.pop(prefix + "var_norm_weight", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return (
            f"{self.dim}, num_heads={self.num_heads}, grid={self.grid}, form={self.form!r}, "
            f"mean={self.mean!r}, cell={self.cell}, prefix_tokens={self.prefix_tokens}, "
            f"prefix={self.prefix!r}, eps={self.eps}"
        )


@torch.compiler.assume_constant_result
def _longest_side(device_type: str) -> int:
    return fused.longest_side(device_type)


def _mix(token_BN11: Tensor, neighbourhood_BNHD: Tensor, ratio_H: Tensor) -> Tensor:
    # As one interpolation, not as a sum of products: the ratio's gradient is then the sum of
    # differences, and a common offset of both does not drown it.
    return torch.lerp(neighbourhood_BNHD, token_BN11, ratio_H[:, None])
