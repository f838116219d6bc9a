"""Encoder classifiers of token sequences: Transformer, BigBird and Reformer of transformers.

Shapes: B batch, N tokens of a padded sequence, C channels.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from triptych.backbones.initialization import initialize_xavier
from triptych.backbones.spec import BackboneSpec
from triptych.choices import Family
from triptych.norms.sites import NormSites, Replacement
from triptych.norms.sites.sequence import bigbird_sites, reformer_sites

PAD, CLS = 0, 1


class SequenceClassifier(nn.Module):
    """An encoder of transformers and a linear head on its first token.

    Sequences are padded to a multiple of ``multiple``, of which the attention of the encoder is
    made; token 0 is padding and has no part in attention.

    Args:
        encoder: takes ``input_ids`` (B, N) and ``attention_mask`` (B, N).
        width: channels of its last hidden state.
        length: longest sequence.
    """

    def __init__(
        self, encoder: nn.Module, width: int, num_classes: int, length: int, multiple: int
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, num_classes)
        self.num_classes, self.length, self.multiple = num_classes, length, multiple
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def train(self, mode: bool = True) -> SequenceClassifier:
        """Set the mode; BigBird's random blocks stay those of training.

        In evaluation its attention would look at the first block in place of each, which it never
        learned. It has no dropout that the mode could switch off.
        """
        super().train(mode)
        for module in self.encoder.modules():
            if type(module).__name__ == "BigBirdBlockSparseAttention":
                module.training = True
        return self

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, num_classes) of token ids (B, N).

        Raises:
            ValueError: the sequences are too long.
        """
        if tokens.shape[1] > self.length:
            raise ValueError(
                f"sequences of {tokens.shape[1]} tokens are longer than the {self.length} that "
                f"the encoder was built for"
            )
        tokens = F.pad(tokens, (0, -tokens.shape[1] % self.multiple), value=PAD)
        hidden_BNC = self.encoder(input_ids=tokens, attention_mask=(tokens != PAD).long())[0]
        return self.head(hidden_BNC[:, 0])

    def norm_sites(self) -> NormSites:
        """Both norms of every encoder layer."""
        find = reformer_sites if type(self.encoder).__name__ == "ReformerModel" else bigbird_sites
        known = find(self.encoder)
        blocks = [[_inside(site) for site in block] for block in known.blocks]
        return NormSites(blocks, known.last_plain, masked_by="encoder")


def _inside(site: Replacement) -> Replacement:
    return Replacement(
        f"encoder.{site.path}", site.dim, site.num_heads, site.grid_size, site.prefix_tokens
    )


def build_sequence_classifier(
    spec: BackboneSpec, *, length: int, vocabulary: int, num_classes: int
) -> SequenceClassifier:
    """The encoder of ``spec`` for sequences of up to ``length`` tokens of ``vocabulary`` kinds.

    ``transformer`` has full attention. ``bigbird`` has block-sparse attention: windows of three
    blocks of ``block_size``, the first and the last block, and ``random_blocks`` more.
    ``reformer`` alternates local attention, over chunks of ``block_size`` and the one before,
    with attention among tokens that hash alike, in ``hashes`` rounds. No dropout.

    Raises:
        ValueError: the sequences are too short for sparse attention to be sparse.
    """
    padded = -(-length // spec.block_size) * spec.block_size
    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": spec.embed_dim,
        "num_hidden_layers": spec.depths[0],
        "num_attention_heads": spec.num_heads[0],
        "max_position_embeddings": padded,
        "pad_token_id": PAD,
        "bos_token_id": CLS,
        "eos_token_id": CLS,
        "sep_token_id": CLS,
        "hidden_dropout_prob": 0.0,
    }
    if spec.family is Family.reformer:
        encoder, width = _reformer(spec, common, padded), 2 * spec.embed_dim
    else:
        encoder, width = _bigbird(spec, common, padded), spec.embed_dim
    model = SequenceClassifier(encoder, width, num_classes, length, spec.block_size)
    if spec.initialization == "xavier":
        initialize_xavier(model)
    return model


def _bigbird(spec: BackboneSpec, common: dict[str, Any], padded: int) -> nn.Module:
    from transformers import BigBirdConfig, BigBirdModel

    sparse = spec.family is Family.bigbird
    least = (5 + 2 * spec.random_blocks) * spec.block_size
    if sparse and padded <= least:
        raise ValueError(
            f"sequences of {padded} tokens are too short for the sparse attention of BigBird with "
            f"block_size={spec.block_size} and random_blocks={spec.random_blocks}, which needs "
            f"more than {least}; use smaller blocks, or the family transformer"
        )
    config = BigBirdConfig(
        intermediate_size=int(spec.embed_dim * spec.mlp_ratio),
        attention_type="block_sparse" if sparse else "original_full",
        block_size=spec.block_size,
        num_random_blocks=spec.random_blocks,
        attention_probs_dropout_prob=0.0,
        use_bias=spec.qkv_bias,
        use_cache=False,
        **common,
    )
    return BigBirdModel(config, add_pooling_layer=False)


def _reformer(spec: BackboneSpec, common: dict[str, Any], padded: int) -> nn.Module:
    from transformers import ReformerConfig, ReformerModel

    layers = spec.depths[0]
    config = ReformerConfig(
        attention_head_size=spec.embed_dim // spec.num_heads[0],
        feed_forward_size=int(spec.embed_dim * spec.mlp_ratio),
        attn_layers=[("local", "lsh")[index % 2] for index in range(layers)],
        local_attn_chunk_length=spec.block_size,
        lsh_attn_chunk_length=spec.block_size,
        num_hashes=spec.hashes,
        num_buckets=_buckets(padded // spec.block_size),
        # A fixed seed: a step must not depend on generators that a resumed run has not moved.
        hash_seed=0,
        axial_pos_embds=False,
        is_decoder=False,
        use_cache=False,
        local_attention_probs_dropout_prob=0.0,
        lsh_attention_probs_dropout_prob=0.0,
        **common,
    )
    return ReformerModel(config)


def _buckets(chunks: int) -> int | list[int]:
    """The power of two below twice the number of chunks; a product of two where it is large."""
    power = max(1, (2 * chunks).bit_length() - 1)
    return 2**power if power <= 7 else [2 ** (power // 2), 2 ** (power - power // 2)]
