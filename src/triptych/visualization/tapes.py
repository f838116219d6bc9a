"""Forward hooks that record one transformer block while its backbone runs.

Shapes: B images, N tokens, C channels, H heads, W windows, Q queries and K keys of a window.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from triptych.visualization.attention_layers import AttentionReader
from triptych.visualization.attention_map import AttentionMap
from triptych.visualization.block_layout import BlockLayout

Finish = Callable[[AttentionMap], AttentionMap]


class AttentionTape:
    """Records the attention of one layer, checked against the layer's own product with the values.

    The hooks come off when ``stack`` closes. Queries, keys and values are let go as soon as the
    matrix is made; ``finish`` may shrink or move it at once.

    With ``in_graph``, the product of the matrix takes the place of the layer's own, so that
    gradients of the output reach the matrix, whatever kernel the layer uses.
    """

    def __init__(
        self,
        reader: AttentionReader,
        stack: ExitStack,
        in_graph: bool = False,
        *,
        finish: Finish | None = None,
    ) -> None:
        self.reader = reader
        self.in_graph = in_graph
        self.finish = finish
        self._kept: dict[str, Tensor] = {}
        self._map: AttentionMap | None = None
        layer = reader.layer
        stack.callback(layer.register_forward_pre_hook(self._keep_mask, with_kwargs=True).remove)
        for name, module in reader.sources.items():
            stack.callback(module.register_forward_hook(self._keep(name)).remove)
        stack.callback(reader.product.register_forward_pre_hook(self._attend).remove)

    @property
    def attention(self) -> AttentionMap:
        """The post-softmax attention.

        Raises:
            RuntimeError: the layer did not run.
        """
        if self._map is None:
            raise RuntimeError(f"the attention of {self.reader.layout.name} did not run")
        return self._map

    def _attend(self, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        probabilities, product, value_scale = self.reader.attend(self._kept)
        assert_reproduces(product, args[0], value_scale)
        placed = self.reader.placed(probabilities, self._kept)
        self._kept.clear()
        if not self.in_graph:
            self._map = self.finish(placed) if self.finish else placed
            return None
        self._map = placed
        return (product.to(args[0].dtype), *args[1:])

    def _keep(self, name: str) -> Any:
        def hook(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> None:
            self._kept[name] = output if self.in_graph else output.detach()

        return hook

    def _keep_mask(
        self, _module: nn.Module, _args: tuple[Tensor, ...], kwargs: dict[str, Any]
    ) -> None:
        mask = kwargs.get("mask")
        if mask is not None:
            self._kept["mask"] = mask


class BlockTape:
    """Records a block's output and the inputs and outputs of its norms.

    Where blocks are not called themselves, ``adds`` is the module whose output is added last, and
    the block's output is the input of its last norm plus that. Nothing of the forward pass is
    changed; the hooks come off when ``stack`` closes.
    """

    def __init__(
        self,
        layout: BlockLayout,
        stack: ExitStack,
        *,
        norms: bool,
        adds: nn.Module | None = None,
        keep_on: torch.device | str | None = None,
    ) -> None:
        self.layout = layout
        self.sites = layout.norm_sites if norms else ()
        self._adds = adds
        self._device = keep_on
        self._kept: dict[str, Tensor] = {}
        stack.callback((adds or layout.block).register_forward_hook(self._keep("hidden")).remove)
        kept_sites = self.sites or (layout.norm_sites[-1:] if adds is not None else ())
        for site in kept_sites:
            norm = layout.block.get_submodule(site)
            stack.callback(norm.register_forward_hook(self._keep(f"{site}.after")).remove)
            hook = norm.register_forward_pre_hook(self._keep_input(f"{site}.before"))
            stack.callback(hook.remove)

    @property
    def hidden(self) -> Tensor:
        """The block's output, (B, N, C)."""
        hidden = self._kept["hidden"]
        if self._adds is not None:
            hidden = hidden + self._kept[f"{self.layout.norm_sites[-1]}.before"]
        return hidden.flatten(1, -2) if hidden.ndim == 4 else hidden

    def norm_tokens(self, site: str, batch: int) -> tuple[Tensor, Tensor]:
        """Input and output of a norm, both (B, N, C)."""
        before, after = self._kept[f"{site}.before"], self._kept[f"{site}.after"]
        channels = before.shape[-1]
        return before.reshape(batch, -1, channels), after.reshape(batch, -1, channels)

    def _keep(self, name: str) -> Any:
        def hook(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> None:
            self._kept[name] = output.detach().to(self._device or output.device)

        return hook

    def _keep_input(self, name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._kept[name] = args[0].detach().to(self._device or args[0].device)

        return hook


def assert_reproduces(recomputed: Tensor, own: Tensor, value_scale: float) -> None:
    """Hold a recomputed product against the layer's own.

    Raises:
        RuntimeError: they differ by more than rounding.
    """
    error = (recomputed.detach() - own.detach().to(recomputed.dtype)).abs().max().item()
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
