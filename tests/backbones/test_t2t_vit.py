"""T2T-ViT: published sizes, its token layers against their formulas, the class token."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.backbones import T2TViT
from triptych.backbones.t2t_vit import sinusoid
from triptych.backbones.tokens_to_token import (
    FullAttention,
    PerformerAttention,
    TokensToToken,
    split_grids,
)
from triptych.norms import DynamicTokenNorm, replace_norms

# (width, depth, heads): millions of parameters as published, fixed position table included.
PUBLISHED = {(384, 14, 6): 21.5, (448, 19, 7): 39.2, (512, 24, 8): 64.1}


def tiny(**options) -> T2TViT:
    torch.manual_seed(0)
    values = {"embed_dim": 16, "depth": 4, "num_heads": 4, "num_classes": 3, "class_token_at": 2}
    splits = {"kernels": (3, 3, 3), "strides": (2, 2, 1), "token_dim": 8}
    return T2TViT(**{"image_size": (16, 24)} | values | splits | options)


@pytest.mark.parametrize(("width", "depth", "heads"), PUBLISHED)
def test_published_sizes(width: int, depth: int, heads: int) -> None:
    counts = []
    for at in (0, depth - 2):
        with torch.device("meta"):
            model = T2TViT(
                image_size=(224, 224),
                embed_dim=width,
                depth=depth,
                num_heads=heads,
                class_token_at=at,
            )
        counts.append(sum(p.numel() for p in model.parameters()))
        assert model.tokens_to_token.grids == [(56, 56), (28, 28), (14, 14)]
    assert round(counts[0] / 1e6, 1) == PUBLISHED[width, depth, heads]
    # A late class token has no position; all else is equal.
    assert counts[0] - counts[1] == width


def test_performer_is_attention_with_random_features() -> None:
    torch.manual_seed(0)
    layer = PerformerAttention(12, 8).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    k, q, v = layer.kqv(x).split(8, -1)

    def feature(vector: torch.Tensor) -> torch.Tensor:
        dots = torch.stack([row @ vector for row in layer.w])
        return (dots - vector.dot(vector) / 2).exp() / math.sqrt(len(layer.w))

    want = torch.empty(2, 5, 8, dtype=torch.float64)
    for sample in range(2):
        for i in range(5):
            weights = torch.stack(
                [feature(q[sample, i]).dot(feature(k[sample, j])) for j in range(5)]
            )
            mixed = (weights[:, None] * v[sample]).sum(0) / (weights.sum() + 1e-8)
            want[sample, i] = v[sample, i] + layer.proj(mixed)
    torch.testing.assert_close(layer(x), want, rtol=0, atol=1e-12)


def test_random_features_are_orthogonal_and_fixed() -> None:
    layer = PerformerAttention(12, 8)
    gram = layer.w @ layer.w.T
    torch.testing.assert_close(gram, 4 * torch.eye(4), rtol=0, atol=1e-5)
    assert not layer.w.requires_grad


def test_full_attention_is_softmax_attention() -> None:
    torch.manual_seed(0)
    layer = FullAttention(12, 8).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    q, k, v = layer.qkv(x).split(8, -1)
    want = v + layer.proj((q @ k.mT / math.sqrt(12)).softmax(-1) @ v)
    torch.testing.assert_close(layer(x), want, rtol=0, atol=1e-12)


def test_soft_splits_are_overlapping_patches() -> None:
    """A single split has no layer behind it: the projection sees 3 x 3 patches of the image."""
    torch.manual_seed(0)
    split = TokensToToken(
        image_size=(8, 6),
        channels=2,
        dim=4,
        kernels=(3,),
        strides=(2,),
        token_dim=8,
        attention="performer",
    )
    x = torch.randn(1, 2, 8, 6)
    kernel = split.project.weight.view(4, 2, 3, 3)
    want = F.conv2d(x, kernel, split.project.bias, stride=2, padding=1)
    torch.testing.assert_close(split(x), want.flatten(2).mT)


@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=3),
)
@settings(deadline=None, max_examples=20)
def test_grids_shrink_by_the_strides(rows: int, columns: int, strides: list[int]) -> None:
    kernels = [2 * stride - 1 for stride in strides]
    total = math.prod(strides)
    grids = split_grids((rows * total, columns * total), kernels, strides)
    assert grids[-1] == (rows, columns)


@pytest.mark.parametrize("attention", ["performer", "transformer"])
@pytest.mark.parametrize("at", [0, 2])
def test_trains_on_a_rectangle(attention: str, at: int) -> None:
    model = tiny(token_attention=attention, class_token_at=at)
    sites = replace_norms(model, "dtn")
    blocks = 3 if at == 0 else 2
    assert [s.path for s in sites] == [f"blocks.{b}.norm{n}" for b in range(blocks) for n in (1, 2)]
    assert {(s.grid_size, s.prefix_tokens) for s in sites} == {((4, 6), int(at == 0))}
    made = [m for m in model.tokens_to_token.modules() if isinstance(m, DynamicTokenNorm)]
    assert made == []
    logits = model(torch.randn(2, 3, 16, 24))
    assert logits.shape == (2, 3)
    logits.square().sum().backward()
    fixed = {name for name, p in model.named_parameters() if p.grad is None}
    random = {f"tokens_to_token.stages.{k}.attn.w" for k in (0, 1)}
    assert fixed == {"pos_embed"} | (random if attention == "performer" else set())


def test_performer_under_autocast_is_computed_in_single_precision() -> None:
    torch.manual_seed(0)
    layer = PerformerAttention(12, 8)
    seen = []
    layer.features = lambda x: seen.append(x.dtype) or PerformerAttention.features(layer, x)  # type: ignore[method-assign, func-returns-value]
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(2, 5, 12))
    assert seen == [torch.float32, torch.float32]


def test_position_table() -> None:
    table = sinusoid(5, 6)
    for position in range(5):
        for channel in range(6):
            angle = position / 10000 ** (2 * (channel // 2) / 6)
            want = math.cos(angle) if channel % 2 else math.sin(angle)
            assert table[position, channel].item() == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"token_attention": "linear"},
            "token_attention must be one of performer, transformer, got 'linear'",
        ),
        (
            {"strides": (4, 2)},
            "kernels=[3, 3, 3] and strides=[4, 2] must name the same soft splits, one entry each",
        ),
    ],
)
def test_refusals(options: dict, sentence: str) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 - compared whole below
        tiny(**options)
    assert str(refusal.value) == sentence
