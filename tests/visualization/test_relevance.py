"""Gradients of attention, gradient rollout, the generic rule and Grad-CAM against references."""

import pytest
import torch
from torch import nn

from triptych.visualization.attention_gradients import capture_gradients
from triptych.visualization.capture import capture
from triptych.visualization.grad_cam import spread_over_pixels, token_grad_cam
from triptych.visualization.relevance import (
    class_relevance,
    generic_relevance,
    gradient_rollout,
    weighted_attention,
)
from triptych.visualization.rollout import discard_lowest

GRADIENT = {"atol": 1e-5, "rtol": 1e-3}


@pytest.fixture
def graded(vit, forward):
    return capture_gradients(vit.requires_grad_(False), forward["x"][:1])


def test_gradients_of_a_frozen_model_equal_the_reference(graded, attribution, forward):
    gradients = torch.stack([one[0, 0] for one in graded.gradients])
    torch.testing.assert_close(gradients, attribution["attn_grad"], **GRADIENT)
    torch.testing.assert_close(graded.captured.output, forward["logits"][:1], atol=2e-5, rtol=1e-4)
    assert graded.target.item() == forward["logits"][0].argmax().item()
    attention = graded.captured.attention()
    assert not attention.requires_grad
    torch.testing.assert_close(attention, forward["attn"][:1], atol=2e-5, rtol=1e-4)


def test_generic_relevance_equals_the_reference(graded, attribution):
    relevance = generic_relevance(graded)[0]
    torch.testing.assert_close(relevance, attribution["chefer_generic_R"], **GRADIENT)
    shown = class_relevance(graded)
    torch.testing.assert_close(shown[0].flatten(), relevance[0, 1:])


@pytest.mark.parametrize("discard", [0.0, 0.9])
def test_gradient_rollout_equals_vit_explain(graded, attribution, discard):
    """vit-explain divides by row sums along the wrong axis; done the same way here."""
    rollout = torch.eye(65)
    for weighted in weighted_attention(graded):
        kept = discard_lowest(weighted.mean(1).relu(), discard, keep_first=False)[0]
        mixing = (kept + torch.eye(65)) / 2
        rollout = (mixing / mixing.sum(-1)) @ rollout
    heat = rollout[0, 1:].view(8, 8)
    golden = attribution[f"vitexplain_gradrollout_{discard}"]
    torch.testing.assert_close(heat / heat.max(), golden, **GRADIENT)


def test_gradient_rollout_by_naive_loops(graded):
    rollout = torch.eye(65)
    for block, gradient in zip(graded.captured.blocks, graded.gradients, strict=True):
        fused = (block.attention_map.probabilities * gradient)[0, 0].mean(0).clamp_min(0)
        mixing = fused + torch.eye(65)
        rows = [row / row.sum() for row in mixing]
        rollout = torch.stack(rows) @ rollout
    torch.testing.assert_close(gradient_rollout(graded)[0], rollout, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(rollout.sum(1), torch.ones(65))


def test_gradients_equal_those_of_the_unfused_layer(make_family, family_images):
    """The layers' own matrices, kept where they are dropped from, give the same gradients."""
    model = make_family("pvt_v2")
    graded = capture_gradients(model, family_images)
    kept = []
    for block in graded.captured.blocks:
        layer = model.get_submodule(block.name).attn
        layer.fused_attn = False
        layer.attn_drop.register_forward_pre_hook(lambda _m, args: kept.append(args[0]))
    output = model.eval()(family_images)
    score = output.gather(1, graded.target[:, None]).sum()
    for own, made in zip(torch.autograd.grad(score, kept), graded.gradients, strict=True):
        torch.testing.assert_close(made.flatten(), own.flatten(), atol=1e-6, rtol=1e-3)


def test_every_family_has_relevance(family, make_family, family_images):
    model = make_family(family)
    graded = capture_gradients(model, family_images, torch.tensor([0, 3]))
    first = graded.captured.blocks[0].grid
    for rule in ("generic", "gradient_rollout"):
        relevance = class_relevance(graded, rule=rule)
        assert relevance.shape == (2, *first)
        assert relevance.isfinite().all()
        assert (relevance >= 0).all()
    cam = token_grad_cam(model, family_images)
    assert cam.shape == (2, *graded.captured.blocks[-1].grid)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_images_do_not_mix(make_family, family_images):
    model = make_family("swin")
    both = generic_relevance(capture_gradients(model, family_images))
    one = generic_relevance(capture_gradients(model, family_images[1:]))
    torch.testing.assert_close(both[1:], one, atol=1e-6, rtol=1e-4)


def test_grad_cam_equals_the_references(vit, forward, attribution):
    cam = token_grad_cam(vit, forward["x"][:1])
    torch.testing.assert_close(cam[0], attribution["gradcam_raw_grid"], **GRADIENT)
    shown = spread_over_pixels(cam, (64, 64))[0]
    torch.testing.assert_close(shown, attribution["gradcam_pkg_64"], **GRADIENT)


def test_grad_cam_of_a_linear_head_is_its_weights(make_family, family_images):
    """Where the head averages the last norm, the mean gradient is its row over the grid."""
    model = make_family("vit")
    model.global_pool, model.fc_norm = "avg", nn.Identity()
    target = torch.tensor([1, 2])
    model.blocks[-1].mlp = nn.Identity()  # norm2's output goes straight to the head
    model.norm = nn.Identity()
    with torch.no_grad():
        activation = capture(model, family_images).blocks[-1].norms[1].after[:, 1:]
    row = model.head.weight[target].detach() / 64
    expected = (activation * row[:, None]).sum(-1).relu().unflatten(1, (8, 8))
    cam = token_grad_cam(model, family_images, target)
    torch.testing.assert_close(cam, expected, atol=1e-6, rtol=1e-4)


def test_bad_requests_get_one_sentence(make_family, family_images):
    model = make_family("vit")
    with pytest.raises(
        ValueError,
        match=r"^target=\[0, 5\] must name one of the classes 0 to 4 for each of 2 images$",
    ):
        capture_gradients(model, family_images, torch.tensor([0, 5]))
    with pytest.raises(ValueError, match=r"^block=7 must be one of the 2 blocks$"):
        token_grad_cam(model, family_images, block=7)
    graded = capture_gradients(model, family_images)
    with pytest.raises(
        ValueError, match=r"^rule 'lrp' is not known; choose one of generic, gradient_rollout$"
    ):
        class_relevance(graded, rule="lrp")
    with pytest.raises(ValueError, match=r"^discard is 1; give a fraction from 0 up to, not "):
        gradient_rollout(graded, discard=1)
    levit = make_family("levit")
    with pytest.raises(ValueError, match=r"^stages.1.downsample has no norm of its own; "):
        token_grad_cam(levit, family_images, block=2)


def test_class_relevance_leaves_out_what_took_every_skip_connection(make_family, family_images):
    """Generic relevance less the averages of the reductions alone, for a head that averages."""
    graded = capture_gradients(make_family("twins_svt"), family_images)
    merging = graded.captured.blocks[2].reduction.matrix((8, 8), (4, 4))
    through = generic_relevance(graded) - merging
    expected = through.mean(1).unflatten(1, (8, 8))
    torch.testing.assert_close(class_relevance(graded), expected, atol=1e-7, rtol=1e-4)
    assert (class_relevance(graded, rule="gradient_rollout") >= 0).all()
