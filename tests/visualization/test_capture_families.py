"""Capture of every family of backbones: the layers' own attention, geometry, what is kept."""

import pytest
import torch
from timm.models.levit import Levit
from timm.models.pvt_v2 import PyramidVisionTransformerV2

from triptych.norms import replace_norms
from triptych.visualization.attention_distance import attention_distances, distance_rows
from triptych.visualization.capture import capture
from triptych.visualization.token_magnitude import token_magnitudes

GRIDS = {
    "vit": [(8, 8)] * 2,
    "swin": [(8, 8)] * 2 + [(4, 4)] * 2,
    "released_vit": [(8, 8)] * 4,
    "twins_svt": [(8, 8)] * 2 + [(4, 4)] * 2,
    "twins_pcpvt": [(8, 8)] * 2 + [(4, 4)] * 2,
    "pvt": [(8, 8), (4, 4), (2, 2), (2, 2)],
    "pvt_v2": [(8, 8)] * 2 + [(4, 4)] * 2,
    "levit": [(4, 4)] * 2 + [(2, 2)] * 3,
    "t2t_vit": [(16, 16), (8, 8)] + [(8, 8)] * 3,
    "t2t_vit_full": [(16, 16)] + [(8, 8)] * 3,
}
PREFIXES = {
    "vit": [1, 1],
    "released_vit": [0, 0, 1, 1],
    "pvt": [0, 0, 1, 1],
    "t2t_vit": [0, 0, 0, 1, 1],
    "t2t_vit_full": [0, 1, 1, 1],
}


def test_geometry_hidden_states_and_output(family, make_family, family_images):
    model = make_family(family)
    captured = capture(model, family_images)
    assert [block.grid for block in captured.blocks] == GRIDS[family]
    prefixes = PREFIXES.get(family, [0] * len(captured.blocks))
    assert [block.prefix_tokens for block in captured.blocks] == prefixes
    assert [block.index for block in captured.blocks] == list(range(captured.depth))
    for block in captured.blocks:
        assert (block.stride[0] * block.grid[0], block.stride[1] * block.grid[1]) == (32, 32)
    outputs = {}
    for block in captured.blocks:
        model.get_submodule(block.name).register_forward_hook(
            lambda _m, _a, out, name=block.name: outputs.update({name: out.flatten(1, -2)})
        )
    torch.testing.assert_close(captured.output, model.eval()(family_images))
    for block in captured.blocks:
        torch.testing.assert_close(block.hidden, outputs[block.name])


def test_rows_of_dense_attention_sum_to_one(family, make_family, family_images):
    for block in capture(make_family(family), family_images).blocks:
        dense = block.attention_map.dense()
        rows = block.prefix_tokens + block.grid[0] * block.grid[1]
        keys = rows if block.key_grid is None else block.key_grid[0] * block.key_grid[1]
        assert dense.shape == (2, block.heads, rows, keys)
        torch.testing.assert_close(dense.sum(-1), torch.ones(2, block.heads, rows))


@pytest.mark.parametrize(
    "name", ["vit", "released_vit", "twins_svt", "twins_pcpvt", "pvt", "pvt_v2", "swin"]
)
def test_attention_is_what_the_unfused_layer_drops_from(name, make_family, family_images):
    model = make_family(name)
    captured = capture(model, family_images)
    own = {}
    for block in captured.blocks:
        layer = model.get_submodule(block.name).attn
        layer.fused_attn = False
        layer.attn_drop.register_forward_pre_hook(
            lambda _m, args, name=block.name: own.update({name: args[0]})
        )
    model.eval()(family_images)
    for block in captured.blocks:
        made = block.attention_map.probabilities
        torch.testing.assert_close(made.flatten(), own[block.name].flatten())


def test_levit_attention_follows_the_definition(make_family, family_images):
    model = make_family("levit").eval()
    captured = capture(model, family_images)
    block = captured.blocks[2]
    layer = model.get_submodule(block.name).attn_downsample
    x = captured.blocks[1].hidden
    with torch.no_grad():
        key = layer.kv(x).view(2, 16, 2, -1)[..., : layer.key_dim]
        asking = x.view(2, 4, 4, -1)[:, ::2, ::2].reshape(2, 4, -1)
        query = layer.q.ln(asking).view(2, 4, 2, -1)
    for head in range(2):
        for at in range(4):
            for to in range(16):
                rows, cols = abs(2 * (at // 2) - to // 4), abs(2 * (at % 2) - to % 4)
                bias = layer.attention_biases[head, 4 * rows + cols]
                score = query[0, at, head] @ key[0, to, head] * layer.scale + bias
                got = block.attention_map.probabilities[0, 0, head, at, to].log()
                if to == 0:
                    base = (score - got).item()
                assert (score - got).item() == pytest.approx(base, abs=1e-4)


@pytest.mark.parametrize("name", ["t2t_vit", "t2t_vit_full"])
def test_tokens_to_token_attention_times_values_is_the_layer(name, make_family, family_images):
    model = make_family(name)
    block = capture(model, family_images).blocks[0]
    layer = model.get_submodule(block.name).attn
    before = block.norms[0].after
    with torch.no_grad():
        value = (layer.kqv if name == "t2t_vit" else layer.qkv)(before).chunk(3, -1)[2]
        product = block.attention_map.dense()[:, 0] @ value
        torch.testing.assert_close(value + layer.proj(product), layer(before), atol=1e-5, rtol=1e-4)


def test_twins_equals_the_reference(twins_capture, twins_reference):
    torch.testing.assert_close(
        twins_capture.output, twins_reference["logits"], atol=2e-5, rtol=1e-4
    )
    for block, name in zip(twins_capture.blocks, ("s0b0", "s0b1", "s1b0", "s1b1"), strict=True):
        made = block.attention_map
        golden = twins_reference[f"{name}/att"]
        torch.testing.assert_close(made.probabilities.view_as(golden), golden, atol=2e-5, rtol=1e-4)
        dense = made.fused("mean").dense()[0, 0]
        torch.testing.assert_close(dense, twins_reference[f"{name}/dense_mean"], atol=1e-6, rtol=0)


def test_twins_distances_equal_the_reference(twins_capture, twins_reference):
    distances = attention_distances(twins_capture)
    for block, name in zip(distances, ("s0b0", "s0b1", "s1b0", "s1b1"), strict=True):
        golden = twins_reference[f"{name}/attn_distance_px"]
        torch.testing.assert_close(block.raw_pixels[0], golden, atol=0, rtol=1e-5)


def test_distances_and_magnitudes_of_every_family(family, make_family, family_images):
    captured = capture(make_family(family), family_images)
    for row in distance_rows(captured):
        assert 0 <= row["distance_pixels"] <= 32 * 2**0.5
        assert row["uniform_pixels"] > 0
    for one in token_magnitudes(captured):
        assert one.before.shape == one.after.shape
        assert one.before.shape[-1] == one.grid[0] * one.grid[1]


@pytest.mark.parametrize("norm", ["dtn", "bn"])
def test_replaced_norms_are_captured(family, norm, make_family, family_images):
    model = make_family(family)
    replaced = replace_norms(model, norm, image_size=(32, 32))
    captured = capture(model, family_images)
    paths = {f"{block.name}.{norm.site}" for block in captured.blocks for norm in block.norms}
    if family == "levit" and norm == "bn":  # its own norm, nothing is replaced
        assert not replaced
    else:
        assert replaced
        assert {one.path for one in replaced} <= paths


def test_frozen_models_and_callers_gradients(make_family, family_images):
    model = make_family("twins_svt").requires_grad_(False)
    with torch.enable_grad():
        captured = capture(model, family_images)
    assert not captured.blocks[0].attention_map.probabilities.requires_grad


@pytest.mark.parametrize("size", [(40, 24), (28, 36)])
def test_uneven_grids_of_pvt_v2(size):
    torch.manual_seed(0)
    model = PyramidVisionTransformerV2(
        embed_dims=(8, 16), depths=(1, 1), num_heads=(1, 2), sr_ratios=(2, 1), mlp_ratios=(2, 2),
        num_classes=3,
    )  # fmt: skip
    for block in capture(model, torch.randn(1, 3, *size)).blocks:
        dense = block.attention_map.dense()
        torch.testing.assert_close(dense.sum(-1), torch.ones(dense.shape[:-1]))


def test_linear_pvt_v2_pools_its_keys():
    torch.manual_seed(0)
    model = PyramidVisionTransformerV2(
        embed_dims=(8, 16), depths=(1, 1), num_heads=(1, 2), mlp_ratios=(2, 2), linear=True,
        num_classes=3,
    )  # fmt: skip
    made = capture(model, torch.randn(1, 3, 64, 64)).blocks[0].attention_map
    assert made.probabilities.shape[-1] == 49
    # Row 0 of 16 tokens falls into the first of 7 bins, of tokens 0 to 2, alone.
    assert made.spread[0].view(16, 16)[:3, :3].tolist() == [[pytest.approx(1 / 9)] * 3] * 3


def test_padded_locally_grouped_windows(make_family):
    from timm.models.twins import Twins

    torch.manual_seed(0)
    model = Twins(
        img_size=40, patch_size=4, embed_dims=(8,), depths=(2,), num_heads=(2,), mlp_ratios=(2,),
        sr_ratios=(2,), wss=(4,), num_classes=3,
    )  # fmt: skip
    block = capture(model, torch.randn(1, 3, 40, 40)).blocks[0]
    assert int((block.attention_map.token_index < 0).sum()) == 12 * 12 - 10 * 10
    dense = block.attention_map.dense()
    torch.testing.assert_close(dense.sum(-1), torch.ones(dense.shape[:-1]))


def test_only_chosen_blocks_are_kept(make_family, family_images):
    model = make_family("swin")
    whole = capture(model, family_images)
    some = capture(model, family_images, blocks=[-1, 1], norms=False, head_fusion="mean")
    assert [block.index for block in some.blocks] == [1, 3]
    assert some.blocks[1].attention_map.heads == 1
    for block in some.blocks:
        full = whole.blocks[block.index]
        torch.testing.assert_close(
            block.attention_map.probabilities, full.attention_map.fused("mean").probabilities
        )
        assert torch.equal(block.hidden, full.hidden)
    with pytest.raises(
        ValueError,
        match=r"^2 of 4 blocks were captured; what passes through all blocks needs a capture "
        r"with blocks=None$",
    ):
        some.whole()


def test_what_is_kept_can_be_moved(make_family, family_images):
    captured = capture(make_family("vit"), family_images, keep_on="cpu")
    block = captured.blocks[0]
    assert block.hidden.device.type == "cpu"
    assert block.attention_map.token_index.device.type == "cpu"


@pytest.mark.parametrize("blocks", [[], [4], [-5, 0]])
def test_blocks_that_there_are_not_are_refused(blocks, make_family, family_images):
    with pytest.raises(ValueError, match=r"must name some of the 4 blocks, -4 to 3$"):
        capture(make_family("swin"), family_images, blocks=blocks)


def test_convolutional_levit_is_refused():
    model = Levit(
        img_size=32, embed_dim=(16,), key_dim=8, depth=(1,), num_heads=(2,), use_conv=True,
        num_classes=2, stem_type="s8",
    )  # fmt: skip
    with pytest.raises(
        ValueError,
        match=r"^cannot capture a LeViT built of convolutions; build it with use_conv=False, "
        r"which computes the same$",
    ):
        capture(model, torch.randn(1, 3, 32, 32))
