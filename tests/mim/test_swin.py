from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from triptych.mim.checkpoints import swin_state
from triptych.mim.masks import mask_from_noise, random_unit_mask
from triptych.mim.visible import visible_encoder
from triptych.norms import DynamicTokenNorm

GOLDENS = ("swin_p1", "swin_p2", "swin_p3", "swin_p4", "swin_p5_tall")


def small_swin(image=(32, 48), window=4, depths=(2, 2), **options):
    heads = [1, 2, 4][: len(depths)]
    return SwinTransformer(
        img_size=image,
        patch_size=2,
        in_chans=2,
        embed_dim=8,
        depths=depths,
        num_heads=heads,
        window_size=window,
        num_classes=3,
        **options,
    )


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw_mask(encoder, ratio, batch, seed=0, per_sample=True):
    units = encoder.unit_grid[0] * encoder.unit_grid[1]
    generator = torch.Generator().manual_seed(seed)
    return random_unit_mask(units, ratio, batch, generator=generator, per_sample=per_sample)


@pytest.fixture(scope="module")
def model(randomize):
    return randomize(small_swin())


# ---------------------------------------------------------------- the released code's numbers


@pytest.mark.parametrize("name", GOLDENS)
def test_latents_of_the_released_code(golden, build_golden_swin, name):
    reference = golden(name)
    model = build_golden_swin(reference)
    model.load_state_dict(swin_state(reference.weights()))
    encoder = visible_encoder(model)
    with torch.no_grad():
        latent = encoder(reference.tensor("imgs"), reference.mask)
        exact = encoder.double()(reference.tensor("imgs").double(), reference.mask)
    torch.testing.assert_close(latent, reference.tensor("latent"), atol=2e-5, rtol=1e-5)
    for form in ("latent_f64", "dense_masked_f64"):
        torch.testing.assert_close(exact, reference.tensor(form), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["swin_p1", "swin_p3", "swin_p4"])
def test_lattices_agree_where_windows_divide_the_grid(golden, build_golden_swin, name):
    reference = golden(name)
    model = build_golden_swin(reference)
    model.load_state_dict(swin_state(reference.weights()))
    with torch.no_grad():
        latent = visible_encoder(model)(reference.tensor("imgs"), reference.mask)
    torch.testing.assert_close(latent, reference.tensor("latent"), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", GOLDENS)
def test_stages_of_the_released_code(golden, build_golden_swin, name):
    reference = golden(name)
    model = build_golden_swin(reference)
    model.load_state_dict(swin_state(reference.weights()))
    encoder = visible_encoder(model)
    plan = encoder.plan(reference.mask)
    width = encoder.stage_shapes(encoder.image_size)[0].grid[1]
    coordinates = reference.tensor("coords_vis")
    assert torch.equal(plan.stages[0].tokens[0], coordinates @ torch.tensor([width, 1]))
    merged = []
    for stage in model.layers[1:]:
        stage.downsample.reduction.register_forward_hook(lambda *call: merged.append(call[2]))
    model.norm.register_forward_hook(lambda *call: merged.append(call[1][0]))
    with torch.no_grad():
        encoder(reference.tensor("imgs"), reference.mask, plan)
    assert len(merged) == len(model.layers)
    for number, tokens in enumerate(merged):
        expected = reference.tensor(f"stage{number}/out")
        torch.testing.assert_close(tokens, expected, atol=2e-5, rtol=1e-5)


def test_gradients_of_the_released_encoder(golden, build_golden_swin):
    reference = golden("swin_p5_tall")
    model = build_golden_swin(reference).double()
    model.load_state_dict(swin_state(reference.weights()))
    latent = visible_encoder(model)(reference.tensor("imgs").double(), reference.mask)
    loss = (latent * reference.tensor("loss_weight").double()).mean()
    torch.testing.assert_close(loss, reference.tensor("loss_f64"), atol=1e-13, rtol=0)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    norms = dict(zip(reference.grad_names, reference.tensor("gradnorm_f64"), strict=True))
    for name, norm in swin_state(norms).items():
        torch.testing.assert_close(gradients[name].norm(), norm, rtol=1e-9, atol=1e-14)
    for name, expected in swin_state(
        {n.removeprefix("grad/"): reference.tensor(n) for n in reference.arrays if "grad/" in n}
    ).items():
        bound = 2e-5 * float(expected.abs().max()) + 1e-8
        torch.testing.assert_close(gradients[name].float(), expected, atol=bound, rtol=0)


# ------------------------------------------------------- equality with timm's dense backbone


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_equals_the_dense_backbone_without_the_hidden_keys(randomize, dense_swin, data):
    depths = data.draw(st.sampled_from([(2,), (2, 2), (1, 3), (2, 1, 2)]))
    unit = 2 * 2 ** (len(depths) - 1)
    grid = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    window = data.draw(st.sampled_from([2, 3, 4, 5, 7, (2, 4), (5, 3)]))
    always = data.draw(st.booleans())
    image = (grid[0] * unit, grid[1] * unit)
    model = randomize(small_swin(image, window, depths, always_partition=always))
    # With the backbone's lattice padding stays a key, as it is in timm's dense forward.
    grouping = data.draw(st.sampled_from(["cheapest", "bucketed", "published"]))
    encoder = visible_encoder(model, lattice="backbone", grouping=grouping)
    assert encoder.unit_grid == grid
    units = grid[0] * grid[1]
    hidden = data.draw(st.integers(0, units - 1))
    per_sample = data.draw(st.booleans())
    mask = draw_mask(encoder, hidden / units, 3, data.draw(st.integers(0, 99)), per_sample)
    images = randn(3, 2, *image)
    with torch.no_grad():
        latents = encoder(images, mask)
        torch.testing.assert_close(latents, dense_swin(model, images, mask), atol=1e-12, rtol=0)


@pytest.mark.parametrize("image", [(32, 32), (32, 48), (48, 32), (20, 28)])
@pytest.mark.parametrize("window", [4, 7])
def test_with_nothing_hidden_equals_timm_itself(randomize, image, window):
    model = randomize(small_swin(image, window))
    encoder = visible_encoder(model)
    images = randn(2, 2, *image)
    with torch.no_grad():
        expected = model.forward_features(images).flatten(1, 2)
        for mask in (draw_mask(encoder, 0.0, 2), draw_mask(encoder, 0.0, 2)[0]):
            torch.testing.assert_close(encoder(images, mask), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("ratio", [0.3, 0.9])
@pytest.mark.parametrize("per_sample", [False, True])
def test_gradients_equal_those_of_the_dense_backbone(model, dense_swin, ratio, per_sample):
    """Packed rows and whole ones, with and without the backbone's padding."""
    for candidate in (model, small_swin(window=7).double().eval()):
        encoder = visible_encoder(candidate, lattice="backbone")
        mask = draw_mask(encoder, ratio, 3, per_sample=per_sample)
        images = randn(3, 2, 32, 48)
        weight = randn(*encoder(images, mask).shape, seed=1)
        gradients = []
        for run in (encoder, lambda *inputs: dense_swin(candidate, *inputs)):  # noqa: B023
            candidate.zero_grad()
            (run(images, mask) * weight).sum().backward()
            gradients.append({n: p.grad.clone() for n, p in _used(candidate)})
        assert gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, gradients[1][name], atol=1e-11, rtol=0, msg=name)


def _used(model):
    return [(n, p) for n, p in model.named_parameters() if not n.startswith("head.")]


def test_hidden_pixels_are_not_read(model):
    encoder = visible_encoder(model)
    images = randn(3, 2, 32, 48)
    mask = draw_mask(encoder, 0.75, 3)
    hidden = mask.view(3, 1, *encoder.unit_grid)
    hidden = hidden.repeat_interleave(encoder.unit, 2).repeat_interleave(encoder.unit, 3)
    with torch.no_grad():
        clean = encoder(images, mask)
        assert torch.equal(clean, encoder(images.masked_fill(hidden, torch.nan), mask))
        assert not torch.equal(clean, encoder(images.masked_fill(~hidden, 0.0), mask))


@pytest.mark.parametrize("ratio", [0.3, 0.75, 0.9])
def test_masks_per_sample_equal_runs_per_sample(model, ratio):
    encoder = visible_encoder(model)
    images = randn(4, 2, 32, 48)
    mask = draw_mask(encoder, ratio, 4)
    with torch.no_grad():
        together = encoder(images, mask)
        alone = [encoder(images[i : i + 1], mask[i]) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-12, rtol=0)


def test_a_plan_made_beforehand_changes_nothing(model):
    encoder = visible_encoder(model)
    images = randn(4, 2, 32, 48)
    mask = draw_mask(encoder, 0.75, 4)
    plan = encoder.plan(mask).to("cpu")
    with torch.no_grad():
        assert torch.equal(encoder(images, mask), encoder(images, mask, plan))
    assert plan.num_visible == 24


def test_equal_masks_share_one_plan(model):
    encoder = visible_encoder(model)
    assert encoder.plan(draw_mask(encoder, 0.5, 4, per_sample=False)).num_plans == 1
    assert encoder.plan(draw_mask(encoder, 0.5, 4)).num_plans == 4


# --------------------------------------------------------------------- shared modules, norms


def test_the_encoder_has_the_modules_of_the_backbone(model):
    encoder = visible_encoder(model)
    assert encoder.backbone is model
    ours = {id(p) for p in encoder.parameters()}
    assert ours == {id(p) for p in model.parameters()}
    assert list(encoder.state_dict()) == [f"backbone.{name}" for name in model.state_dict()]


def test_images_of_another_size_where_the_backbone_takes_them(randomize, dense_swin):
    model = randomize(small_swin(strict_img_size=False))
    encoder = visible_encoder(model)
    images = randn(2, 2, 64, 32)
    mask = mask_from_noise(randn(2, 16 * 8), 0.75)
    for block in (block for stage in model.layers for block in stage.blocks):
        block.attn_mask = None
    with torch.no_grad():
        full = encoder(images, torch.zeros(128, dtype=torch.bool))
        torch.testing.assert_close(
            full, model.forward_features(images).flatten(1, 2), atol=1e-12, rtol=0
        )
        assert encoder(images, mask).shape == (2, 32, 16)


def test_gradient_checkpointing_changes_nothing(randomize):
    model = randomize(small_swin())
    encoder = visible_encoder(model)
    images, mask = randn(2, 2, 32, 48), draw_mask(encoder, 0.5, 2)
    gradients = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        model.zero_grad()
        encoder(images, mask).square().sum().backward()
        gradients.append(model.patch_embed.proj.weight.grad.clone())
    assert torch.equal(*gradients)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("ratio", [0.0, 0.6])
def test_dynamic_token_norm_is_told_which_tokens_exist(randomize, dense_swin, per_sample, ratio):
    model = small_swin((16, 24), window=2)
    grids = {"patch_embed": (8, 12), "layers.0": (8, 12), "layers.1": (4, 6), "norm": (4, 6)}
    for name, norm in list(model.named_modules()):
        if isinstance(norm, nn.LayerNorm):
            grid = next(g for prefix, g in grids.items() if name.startswith(prefix))
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(
                parent, name.rpartition(".")[2], DynamicTokenNorm(norm.normalized_shape[0], 2, grid)
            )
    randomize(model)
    encoder = visible_encoder(model)
    images, mask = randn(3, 2, 16, 24), draw_mask(encoder, ratio, 3, per_sample=per_sample)
    with torch.no_grad():
        latents = encoder(images, mask)
        torch.testing.assert_close(latents, dense_swin(model, images, mask), atol=1e-12, rtol=0)
        if ratio == 0:
            dense = model.forward_features(images).flatten(1, 2)
            torch.testing.assert_close(latents, dense, atol=1e-12, rtol=0)


# -------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (torch.zeros(96), "mask must be bool (True = hidden), got torch.float32"),
        (
            torch.zeros(2, 95, dtype=torch.bool),
            "mask must have shape (96,) or (B, 96), got (2, 95)",
        ),
        (
            torch.ones(2, 96, dtype=torch.bool),
            "mask hides all 96 mask units; at least one must stay visible",
        ),
        (
            torch.eye(96, dtype=torch.bool)[:2].cumsum(1).bool(),
            "every sample must hide the same number of mask units, got 95 to 96 of 96",
        ),
    ],
)
def test_masks_that_do_not_fit(model, mask, sentence):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        visible_encoder(model)(randn(2, 2, 32, 48), mask)
    assert str(error.value) == sentence


def test_images_and_plans_that_do_not_fit(model):
    encoder = visible_encoder(model)
    mask = draw_mask(encoder, 0.5, 3)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        encoder(randn(3, 2, 48, 48), mask)
    assert str(error.value) == "images are 48x48, but the backbone was built for 32x48"
    with pytest.raises(ValueError) as error:  # noqa: PT011
        encoder(randn(2, 2, 32, 48), mask, encoder.plan(mask))
    assert str(error.value) == (
        "the plan is for masks (3, 96), but there are 2 images of 96 mask units"
    )
    free = visible_encoder(small_swin(strict_img_size=False))
    with pytest.raises(ValueError) as error:  # noqa: PT011
        free(randn(2, 2, 32, 46).float(), mask)
    assert str(error.value) == (
        "images are 32x46, but both sides must be multiples of the mask unit of 4 pixels"
    )


def test_other_backbones_are_refused():
    with pytest.raises(ValueError) as error:  # noqa: PT011
        visible_encoder(nn.Linear(2, 2))
    assert str(error.value) == (
        "no visible-token encoder for Linear; there is one for timm's SwinTransformer, "
        "VisionTransformer, Twins and PyramidVisionTransformerV2, and our ReleasedPvt"
    )
