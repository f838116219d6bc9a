"""Capture against reference arrays, and what it must not change."""

import pytest
import torch
from timm.models.resnet import resnet10t
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from triptych.norms import DynamicTokenNorm, replace_norms
from triptych.visualization.capture import capture

ATTENTION = {"atol": 2e-5, "rtol": 1e-4}


def small_vit(**options):
    torch.manual_seed(0)
    defaults = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return VisionTransformer(**(defaults | options), num_classes=3)


def small_swin(**options):
    torch.manual_seed(0)
    defaults = {"img_size": 32, "patch_size": 4, "embed_dim": 8, "depths": (2, 2)}
    return SwinTransformer(
        **(defaults | {"num_heads": (1, 2), "window_size": 4} | options), num_classes=3
    )


def test_vit_attention_hidden_and_output_equal_the_reference(vit_capture, forward):
    torch.testing.assert_close(vit_capture.attention(), forward["attn"], **ATTENTION)
    hidden = torch.stack([block.hidden for block in vit_capture.blocks], dim=1)
    torch.testing.assert_close(hidden, forward["hidden"], **ATTENTION)
    torch.testing.assert_close(vit_capture.output, forward["logits"], **ATTENTION)


def test_vit_geometry(vit_capture):
    assert (vit_capture.prefix_tokens, vit_capture.stages) == (1, 1)
    assert vit_capture.reads_class_token
    assert vit_capture.image_size == (64, 64)
    for index, block in enumerate(vit_capture.blocks):
        assert (block.name, block.grid, block.stride) == (f"blocks.{index}", (8, 8), (8, 8))
        assert (block.heads, block.window, block.shift) == (4, (8, 8), (0, 0))


@pytest.mark.parametrize(("stage", "index"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_swin_windows_equal_the_reference(swin_capture, hier, stage, index):
    block = swin_capture.blocks[2 * stage + index]
    key = f"s{stage}b{index}"
    attention = block.attention_map
    torch.testing.assert_close(
        attention.probabilities[0], hier[f"{key}/window_att"], atol=2e-5, rtol=1e-4
    )
    assert torch.equal(attention.token_index, hier[f"{key}/window_index"].long())
    dense_mean = attention.fused("mean").dense()[0, 0]
    torch.testing.assert_close(dense_mean, hier[f"{key}/dense_mean"], atol=1e-6, rtol=0)
    hidden = hier[f"{key}/hidden"].flatten(1, 2)
    torch.testing.assert_close(block.hidden, hidden, **ATTENTION)
    assert block.name == f"layers.{stage}.blocks.{index}"
    assert block.grid == (16 // 2**stage,) * 2
    assert block.stride == (4 * 2**stage,) * 2
    assert block.shift == ((2, 2) if index else (0, 0))


@pytest.mark.parametrize("make", [small_vit, small_swin])
def test_fused_and_unfused_kernels_give_the_same_capture(make):
    model = make()
    images = torch.randn(2, 3, model.patch_embed.img_size[0], model.patch_embed.img_size[1])
    captures = []
    for fused in (True, False):
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = fused
        captures.append(capture(model, images))
    for one, other in zip(captures[0].blocks, captures[1].blocks, strict=True):
        torch.testing.assert_close(
            one.attention_map.probabilities, other.attention_map.probabilities
        )
        torch.testing.assert_close(one.hidden, other.hidden)


def test_norms_are_captured_with_what_they_return():
    model = small_swin().eval()
    captured = capture(model, torch.randn(2, 3, 32, 32))
    for block in captured.blocks:
        module = model.get_submodule(block.name)
        assert [norm.site for norm in block.norms] == ["norm1", "norm2"]
        for norm in block.norms:
            assert norm.kind == "LayerNorm"
            assert norm.before.shape == block.hidden.shape
            after = getattr(module, norm.site)(norm.before)
            torch.testing.assert_close(norm.after, after)
    first, second = captured.blocks[:2]
    assert torch.equal(first.hidden, second.norms[0].before)


@pytest.mark.parametrize("make", [small_vit, small_swin])
def test_dynamic_token_norm_is_captured_like_any_norm(make):
    model = make()
    replaced = replace_norms(model, "dtn", last_plain=0)
    images = torch.randn(2, 3, model.patch_embed.img_size[0], model.patch_embed.img_size[1])
    captured = capture(model, images)
    kinds = [norm.kind for block in captured.blocks for norm in block.norms]
    assert kinds == [DynamicTokenNorm.__name__] * len(replaced)
    torch.testing.assert_close(captured.output, model.eval()(images))


def test_capture_leaves_the_model_as_it_was():
    model = small_vit(drop_path_rate=0.5, proj_drop_rate=0.5).train()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    captured = capture(model, torch.randn(2, 3, 16, 16))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not captured.blocks[0].hidden.requires_grad


def test_mode_and_hooks_are_restored_when_the_forward_fails():
    model = small_vit().train()
    with pytest.raises(AssertionError, match="doesn't match model"):
        capture(model, torch.randn(1, 3, 20, 20))
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_attention_that_does_not_reproduce_the_layer_is_refused():
    model = small_vit()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    model.blocks[1].attn.fused_attn = True
    model.blocks[1].attn.scale = 0.0  # the fused kernel takes its scale from the head size
    with pytest.raises(RuntimeError, match=r"^the recomputed attention differs from the layer's"):
        capture(model, torch.randn(1, 3, 16, 16))


def test_bfloat16_models_are_captured_in_float32():
    captured = capture(small_swin().bfloat16(), torch.randn(2, 3, 32, 32).bfloat16())
    for block in captured.blocks:
        probabilities = block.attention_map.probabilities
        assert probabilities.dtype == torch.float32
        torch.testing.assert_close(
            probabilities.sum(-1), torch.ones(()).expand(2, *probabilities.shape[1:-1])
        )


def test_autocast_of_the_caller_does_not_reach_the_attention():
    model, images = small_vit(), torch.randn(2, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        captured = capture(model, images)
    attention = captured.attention()
    assert attention.dtype == torch.float32
    torch.testing.assert_close(attention, capture(model, images).attention(), atol=2e-2, rtol=0)


def test_padded_shifted_windows_keep_rows_whole():
    model = small_swin(img_size=48, window_size=8)  # grids of 12 and 6, windows of 8 and 6
    captured = capture(model, torch.randn(2, 3, 48, 48))
    padded = captured.blocks[1]
    assert (padded.grid, padded.window, padded.shift) == ((12, 12), (8, 8), (4, 4))
    assert int((padded.attention_map.token_index < 0).sum()) == 16 * 16 - 12 * 12
    for block in captured.blocks:
        dense = block.attention_map.dense()
        tokens = block.grid[0] * block.grid[1]
        assert dense.shape == (2, block.heads, tokens, tokens)
        torch.testing.assert_close(dense.sum(-1), torch.ones(2, block.heads, tokens))


def test_registers_and_oblong_images():
    model = small_vit(img_size=(16, 24), reg_tokens=3, class_token=True, global_pool="avg")
    captured = capture(model, torch.randn(1, 3, 16, 24))
    assert captured.prefix_tokens == 4
    assert not captured.reads_class_token
    assert captured.blocks[0].grid == (4, 6)
    assert captured.attention().shape == (1, 2, 2, 28, 28)


def test_dynamic_image_size():
    model = small_vit(dynamic_img_size=True)
    assert capture(model, torch.randn(1, 3, 24, 20)).blocks[0].grid == (6, 5)


def test_attention_and_norms_can_be_left_out():
    captured = capture(small_vit(), torch.randn(1, 3, 16, 16), attention=False, norms=False)
    assert captured.blocks[0].norms == ()
    with pytest.raises(
        ValueError,
        match=r"^block blocks.0 was captured with attention=False; "
        "capture again with attention=True$",
    ):
        captured.attention()


def test_stages_cannot_be_stacked(swin_capture):
    with pytest.raises(ValueError, match=r"^the attention of 2 stages cannot be stacked; "):
        swin_capture.attention()


def test_other_models_are_refused():
    with pytest.raises(
        ValueError,
        match=r"^cannot capture a ResNet; give one of VisionTransformer, SwinTransformer, Twins, "
        r"PyramidVisionTransformerV2, Levit, ReleasedViT, ReleasedPvt or T2TViT$",
    ):
        capture(resnet10t(), torch.randn(1, 3, 32, 32))


def test_other_attention_is_refused():
    model = small_vit(attn_layer="diff")
    with pytest.raises(
        ValueError, match=r"^cannot capture the attention DiffAttention of blocks.0; "
    ):
        capture(model, torch.randn(1, 3, 16, 16))
