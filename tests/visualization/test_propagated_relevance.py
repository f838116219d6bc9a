"""Relevance propagated through a ViT: the released code's numbers, and that none gets lost."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from triptych.norms import replace_norms
from triptych.visualization.capture import capture
from triptych.visualization.propagated_relevance import propagate_relevance
from triptych.visualization.propagation_rules import (
    through_copies,
    through_linear,
    through_product,
    through_sum,
)

TOLERANCE = {"atol": 1e-5, "rtol": 1e-3}


@pytest.fixture
def found(vit, forward):
    return propagate_relevance(vit.requires_grad_(False), forward["x"][:1])


def test_attribution_equals_the_released_code(found, attribution):
    for name, ours in (
        ("transformer_attribution", found.attribution()),
        ("rollout", found.rollout()),
        ("last_layer", found.of_block(-1)),
        ("second_layer", found.of_block(1)),
        ("full", found.pixels),
    ):
        torch.testing.assert_close(ours[0], attribution[f"cheferlrp_{name}"], **TOLERANCE, msg=name)


def test_attention_alone_equals_the_released_code(vit, forward, attribution):
    last = capture(vit, forward["x"][:1]).blocks[-1].attention_map.dense()
    golden = attribution["cheferlrp_last_layer_attn"]
    torch.testing.assert_close(last.mean(1)[0, 0, 1:], golden, **TOLERANCE)


def test_images_of_a_batch_do_not_touch_each_other(vit, forward):
    both = propagate_relevance(vit, forward["x"])
    for index in range(2):
        alone = propagate_relevance(vit, forward["x"][index : index + 1])
        torch.testing.assert_close(both.attribution()[index], alone.attribution()[0], **TOLERANCE)
        torch.testing.assert_close(both.pixels[index], alone.pixels[0], **TOLERANCE)


def test_another_norm_is_handed_through(vit, forward):
    replace_norms(vit, "dtn")
    assert propagate_relevance(vit, forward["x"]).attribution().shape == (2, 64)


def test_what_no_product_is_above_0_for_gets_lost():
    layer = nn.Linear(2, 1, bias=False)
    nn.init.constant_(layer.weight, -1.0)
    assert not through_linear(layer, torch.ones(1, 2), torch.ones(1, 1)).any()


def test_rules_keep_the_sum_of_relevance():
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(60, 5, bias=False)  # so many that none has only products below 0
    x = torch.randn(2, 3, 60, generator=generator)
    relevance = torch.rand(2, 3, 5, generator=generator)
    torch.testing.assert_close(through_linear(layer, x, relevance).sum(), relevance.sum())
    own, x, y = (torch.rand(2, 3, 6, generator=generator) + 0.1 for _ in range(3))
    first, second = through_sum(x, y, own)
    torch.testing.assert_close((first + second).sum((1, 2)), own.sum((1, 2)))
    torch.testing.assert_close(through_copies(x, own, own), 2 * own)
    product = torch.rand(2, 3, 3, generator=generator)
    halves = through_product("bqd,bkd->bqk", y, y, product)
    for half in halves:
        torch.testing.assert_close(half.sum(), product.sum() / 2)


def test_what_has_no_rule_is_refused():
    model = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2, global_pool="avg"
    )
    with pytest.raises(ValueError, match=r"^relevance cannot be propagated through this Vision"):
        propagate_relevance(model, torch.rand(1, 3, 16, 16))
