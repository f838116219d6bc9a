"""Forward hooks that record one transformer block while its backbone runs.

Shapes: B images, N tokens, C channels, H heads, W windows, K tokens in a window, D channels of a
head, R = B·W rows of the window attention.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from triptych.visualization.attention_map import AttentionMap, window_token_index


class BlockTape:
    """Records a block's output, its norms and what its attention layer computed.

    The hooks come off when ``stack`` closes. Nothing of the forward pass is changed.
    """

    def __init__(
        self, block: nn.Module, stack: ExitStack, *, attention: bool, sites: tuple[str, ...]
    ) -> None:
        self.block: Any = block
        self.sites = sites
        self.wants_attention = attention
        self._kept: dict[str, Tensor] = {}
        self._mask: Tensor | None = None
        for hook in self._hooks():
            stack.callback(hook.remove)

    def _hooks(self) -> list[RemovableHandle]:
        hooks = [self.block.register_forward_hook(self._keep("hidden"))]
        for site in self.sites:
            norm = getattr(self.block, site)
            hooks.append(norm.register_forward_hook(self._keep(f"{site}.after")))
            hooks.append(norm.register_forward_pre_hook(self._keep_input(f"{site}.before")))
        if self.wants_attention:
            layer = self.block.attn
            # timm's Attention may norm and gate its output before the projection.
            product = layer.norm if isinstance(layer, Attention) else layer.proj
            hooks.append(layer.register_forward_pre_hook(self._keep_mask, with_kwargs=True))
            hooks.append(layer.qkv.register_forward_hook(self._keep("qkv")))
            hooks.append(product.register_forward_pre_hook(self._keep_input("product")))
        return hooks

    @property
    def hidden(self) -> Tensor:
        """The block's output as it left the block."""
        return self._kept["hidden"]

    def norm_tokens(self, site: str) -> tuple[Tensor, Tensor]:
        """Input and output of a norm, both (B, N, C)."""
        before, after = self._kept[f"{site}.before"], self._kept[f"{site}.after"]
        return before.flatten(1, -2), after.flatten(1, -2)

    def attention_map(self, tokens: int, grid: tuple[int, int]) -> AttentionMap:
        """The block's post-softmax attention, checked against the layer's own product with V.

        Raises:
            RuntimeError: the two differ.
        """
        query_RHKD, key_RHKD, value_RHKD = self._query_key_value()
        device = query_RHKD.device
        with torch.autocast(device.type, enabled=False):
            bias = self._bias(len(query_RHKD)).to(query_RHKD.dtype)
            scores_RHKK = query_RHKD * self.block.attn.scale @ key_RHKD.transpose(-2, -1)
            attention_RHKK = (scores_RHKK + bias).softmax(-1)
            product_RKC = (attention_RHKK @ value_RHKD).transpose(1, 2).flatten(2)
        _assert_reproduces(product_RKC, self._kept["product"], value_RHKD.abs().max().item())
        if isinstance(self.block.attn, Attention):
            index_WK = torch.arange(tokens, device=device)[None]
        else:
            index_WK = window_token_index(
                grid, self.block.window_size, self.block.shift_size, device
            )
        windows, slots = index_WK.shape
        if self._mask is None:
            reachable = torch.ones(windows, slots, slots, dtype=torch.bool, device=device)
        else:
            reachable = self._mask == 0
        return AttentionMap(attention_RHKK.unflatten(0, (-1, windows)), index_WK, reachable, tokens)

    def _query_key_value(self) -> tuple[Tensor, Tensor, Tensor]:
        layer = self.block.attn
        qkv_RK3HD = self._kept["qkv"].unflatten(-1, (3, layer.num_heads, -1))
        query, key, value = qkv_RK3HD.permute(2, 0, 3, 1, 4)
        if isinstance(layer, Attention):
            query, key = layer.q_norm(query), layer.k_norm(key)
        dtype = torch.promote_types(query.dtype, torch.float32)
        return query.to(dtype), key.to(dtype), value.to(dtype)

    def _bias(self, rows: int) -> Tensor:
        """What the layer adds to the scores, broadcastable to (R, H, K, K)."""
        layer = self.block.attn
        if isinstance(layer, Attention):
            return torch.zeros((), device=layer.qkv.weight.device)
        index_KK = layer.relative_position_index
        bias_HKK = layer.relative_position_bias_table[index_KK].permute(2, 0, 1)
        if self._mask is None:
            return bias_HKK
        masks_RKK = self._mask.repeat(rows // len(self._mask), 1, 1)
        return bias_HKK + masks_RKK[:, None]

    def _keep(self, name: str) -> Any:
        def hook(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> None:
            self._kept[name] = output.detach()

        return hook

    def _keep_input(self, name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._kept[name] = args[0].detach()

        return hook

    def _keep_mask(
        self, _module: nn.Module, _args: tuple[Tensor, ...], kwargs: dict[str, Any]
    ) -> None:
        self._mask = kwargs.get("mask")


def _assert_reproduces(recomputed: Tensor, own: Tensor, value_scale: float) -> None:
    error = (recomputed - own.to(recomputed.dtype)).abs().max().item()
    # Averages of values carry the rounding of the values, however small they come out.
    tolerance = _relative_tolerance(own.dtype) * value_scale
    if not error <= tolerance:
        raise RuntimeError(
            f"the recomputed attention differs from the layer's own output by {error:.2e} "
            f"(rounding explains {tolerance:.0e}); the layer does more than softmax attention"
        )


def _relative_tolerance(dtype: torch.dtype) -> float:
    if dtype in (torch.float16, torch.bfloat16):
        return 3e-2
    # TF32 and its kin keep about three digits of a product.
    return 1e-4 if torch.get_float32_matmul_precision() == "highest" else 1e-2
