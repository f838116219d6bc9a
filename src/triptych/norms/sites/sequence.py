"""Sites of the long-sequence encoders of transformers: BigBird and Reformer.

LayerNorm of every encoder layer (our choice; no code is released), over the sequence of the
greatest length; BigBird is post-norm, Reformer pre-norm. Embedding, final norm and heads keep it.
The first token counts as an ordinary position: these models have no learned token outside the
sequence. Padding is told by the attention mask, which DTN takes too. The classes are not imported
here, which would cost seconds: a model brings them along.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from triptych.norms.sites.site import NormSites, block_sites


def bigbird_sites(model: nn.Module) -> NormSites:
    base, prefix = _base(model)
    config: Any = base.config
    return NormSites(
        [
            block_sites(
                model,
                f"{prefix}encoder.layer.{index}",
                num_heads=config.num_attention_heads,
                grid_size=int(config.max_position_embeddings),
                norms=("attention.output.LayerNorm", "output.LayerNorm"),
            )
            for index in range(len(base.get_submodule("encoder.layer")))  # type: ignore[arg-type]
        ],
        masked_by=prefix.removesuffix("."),
    )


def reformer_sites(model: nn.Module) -> NormSites:
    """The sites of a Reformer.

    Raises:
        ValueError: its feed-forward layers see the sequence in chunks, so that a norm inside them
            could not look at neighbours.
    """
    base, prefix = _base(model)
    config: Any = base.config
    if config.chunk_size_feed_forward:
        raise ValueError(
            f"chunk_size_feed_forward={config.chunk_size_feed_forward} hides neighbouring tokens "
            f"from the norm of a Reformer's feed-forward layer; set it to 0"
        )
    return NormSites(
        [
            block_sites(
                model,
                f"{prefix}encoder.layers.{index}",
                num_heads=config.num_attention_heads,
                grid_size=int(config.max_position_embeddings),
                norms=("attention.layer_norm", "feed_forward.layer_norm"),
            )
            for index in range(len(base.get_submodule("encoder.layers")))  # type: ignore[arg-type]
        ],
        masked_by=prefix.removesuffix("."),
    )


def _base(model: nn.Module) -> tuple[nn.Module, str]:
    """The encoder inside ``model``, which may be a model with a head, and its path's prefix."""
    name = str(model.base_model_prefix)
    base = getattr(model, name, None)
    return (base, f"{name}.") if isinstance(base, nn.Module) else (model, "")
