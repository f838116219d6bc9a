"""Token magnitudes before and after a norm, head by head (figure of the DTN repository).

LayerNorm gives all tokens nearly the same length; a norm that keeps differences between tokens
keeps the variation of their lengths. The coefficient of variation (CV) puts it in one number.

Shapes: B images, H heads, N grid tokens, P prefix tokens, C channels, D = C / H.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from triptych.visualization.capture import Capture


@dataclass(frozen=True)
class TokenMagnitude:
    """Lengths of the tokens at one norm.

    Attributes:
        layer: number of the block in the forward pass, from 1.
        block: its module path.
        site: module path of the norm under its block, such as "norm1".
        kind: class name of the norm.
        grid: (rows, columns) of the tokens.
        before, after: (B, H, N), L2 norm of each head's slice of each grid token.
    """

    layer: int
    block: str
    site: str
    kind: str
    grid: tuple[int, int]
    before: Tensor
    after: Tensor

    @property
    def cv_before(self) -> Tensor:
        return coefficient_of_variation(self.before)

    @property
    def cv_after(self) -> Tensor:
        return coefficient_of_variation(self.after)

    @property
    def cv_ratio(self) -> float:
        """Mean CV after the norm over mean CV before it; nan where all tokens have one length."""
        return (self.cv_after.mean() / self.cv_before.mean()).item()


def head_norms(tokens: Tensor, heads: int) -> Tensor:
    """L2 norm (B, H, N) of each head's slice of ``tokens`` (B, N, C).

    Raises:
        ValueError: C does not divide into ``heads``.
    """
    if tokens.shape[-1] % heads:
        raise ValueError(
            f"{tokens.shape[-1]} channels do not divide into {heads} heads; "
            "give a divisor of the number of channels"
        )
    return tokens.unflatten(-1, (heads, -1)).norm(dim=-1).transpose(1, 2)


def coefficient_of_variation(norms: Tensor) -> Tensor:
    """Population standard deviation over mean along the last dimension."""
    return norms.std(-1, correction=0) / norms.mean(-1)


def token_magnitudes(captured: Capture) -> tuple[TokenMagnitude, ...]:
    """Magnitudes at every captured norm, in the order of the forward pass, prefix tokens left out.

    Raises:
        ValueError: the capture holds no norms.
    """
    if not any(block.norms for block in captured.blocks):
        raise ValueError("no norms were captured with norms=False; capture again with norms=True")
    return tuple(
        TokenMagnitude(
            layer=block.index + 1,
            block=block.name,
            site=norm.site,
            kind=norm.kind,
            grid=block.grid,
            before=head_norms(norm.before[:, block.prefix_tokens :].float(), block.heads),
            after=head_norms(norm.after[:, block.prefix_tokens :].float(), block.heads),
        )
        for block in captured.blocks
        for norm in block.norms
    )


def magnitude_rows(magnitudes: tuple[TokenMagnitude, ...]) -> list[dict[str, object]]:
    """One row per norm and head: CV and mean length before and after, averaged over images."""
    return [
        {
            "layer": one.layer,
            "block": one.block,
            "site": one.site,
            "norm": one.kind,
            "head": head,
            "cv_before": one.cv_before[:, head].mean().item(),
            "cv_after": one.cv_after[:, head].mean().item(),
            "mean_before": one.before[:, head].mean().item(),
            "mean_after": one.after[:, head].mean().item(),
        }
        for one in magnitudes
        for head in range(one.before.shape[1])
    ]
