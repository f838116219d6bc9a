"""Padded sequences: how the norms of an encoder of transformers learn which tokens are real.

Such an encoder hands its attention mask to attention alone. Hooks carry it on to the norms that
look at other tokens, so that their statistics are over real tokens.

Shapes: B batch, N tokens of the longest sequence, L tokens that the norm sees: N, or more where
the encoder pads to a multiple of its blocks.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SequenceMask:
    """The attention mask of the forward pass under way, shared by the norms of one encoder.

    It is True at real tokens. While gradients are computed it is that of the forward pass that
    they belong to, since Reformer and gradient checkpointing run their layers again then.
    """

    def __init__(self) -> None:
        self.real_BN: Tensor | None = None

    def attach(self, encoder: nn.Module, norms: Sequence[nn.Module]) -> None:
        """Listen to the forward passes of ``encoder`` and tell ``norms``.

        Args:
            encoder: takes ``attention_mask`` (B, N) and ``input_ids`` or ``inputs_embeds``.
            norms: called as ``norm(x, visible=...)``.
        """
        # Bound methods and no closures: a deep copy of the encoder gets a mask of its own.
        encoder.register_forward_pre_hook(self._listen, with_kwargs=True)
        encoder.register_forward_hook(self._remember)
        for norm in norms:
            norm.register_forward_pre_hook(self._tell, with_kwargs=True)

    def _listen(self, encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = inspect.signature(encoder.forward).bind_partial(*args, **kwargs).arguments
        mask, tokens = given.get("attention_mask"), given.get("input_ids")
        if tokens is None:
            tokens = given.get("inputs_embeds")
        if mask is not None:
            if mask.ndim != 2:
                raise ValueError(
                    f"attention_mask must be (batch, tokens), 1 at real tokens and 0 at padding, "
                    f"for a norm that looks at neighbouring tokens; got {tuple(mask.shape)}"
                )
            self.real_BN = mask > 0
        elif tokens is not None:
            self.real_BN = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)

    def _remember(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        hidden, mask, self.real_BN = output[0], self.real_BN, None
        if isinstance(hidden, Tensor) and hidden.requires_grad and mask is not None:
            # Runs right before the gradients of this forward pass flow back into the layers.
            hidden.register_hook(partial(self._recall, mask))

    def _recall(self, mask_BN: Tensor, _: Tensor) -> None:
        self.real_BN = mask_BN

    def _tell(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self.real_BN is None or len(args) != 1 or kwargs:
            return args, kwargs
        missing = args[0].shape[1] - self.real_BN.shape[1]
        return args, {"visible": F.pad(self.real_BN, (0, missing), value=False)}
