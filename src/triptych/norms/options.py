"""What DynamicTokenNorm can be asked for, and the refusal of everything else."""

from __future__ import annotations

from triptych.tokens import TokenGrid

FORMS = ("released", "paper")
MEANS = ("mixed", "token")


def check_options(
    dim: int, num_heads: int, form: str, mean: str, prefix_tokens: int, eps: float
) -> None:
    """Refuse options out of range; see :class:`DynamicTokenNorm`.

    Raises:
        ValueError: a value is out of its range.
    """
    if num_heads < 1 or dim < 2 or dim % num_heads:
        raise ValueError(
            f"dim={dim} does not split into num_heads={num_heads} heads: dim must be at least 2 "
            f"and a multiple of num_heads"
        )
    if form not in FORMS:
        raise ValueError(f"form must be 'released' or 'paper', got {form!r}")
    if mean not in MEANS:
        raise ValueError(f"mean must be 'mixed' or 'token', got {mean!r}")
    if prefix_tokens < 0:
        raise ValueError(f"prefix_tokens must be 0 or more, got {prefix_tokens}")
    if not eps > 0:
        raise ValueError(f"eps must be above 0, got {eps}")


def pooling_cell(grid: TokenGrid, pool_to: int | None) -> tuple[int, int]:
    """Tokens (down, across) that one cell of the pooled statistics averages.

    Raises:
        ValueError: ``pool_to`` is below 1, or does not divide a side above it.
    """
    if pool_to is None:
        return 1, 1
    if pool_to < 1:
        raise ValueError(f"pool_to must be at least 1 or None, got {pool_to}")
    for side in (grid.height, grid.width):
        if side > pool_to and side % pool_to:
            raise ValueError(
                f"pool_to={pool_to} does not divide the sides of a {grid} grid: a side above "
                f"pool_to must be a multiple of it"
            )
    return max(grid.height // pool_to, 1), max(grid.width // pool_to, 1)
