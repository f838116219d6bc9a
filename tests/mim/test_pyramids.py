"""Twins and PVT on visible tokens, against the dense backbones with what is hidden removed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.twins import LocallyGroupedAttn, Twins
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.backbones import ReleasedPvt
from triptych.mim.masks import random_unit_mask
from triptych.mim.visible import visible_encoder
from triptych.norms import DynamicTokenNorm

WIDTHS = {"embed_dims": (8, 12, 16), "num_heads": (1, 2, 4), "mlp_ratios": (2, 2, 2)}


def shape(depths: tuple[int, ...], sr_ratios: tuple[int, ...] | None = None) -> dict[str, Any]:
    stages = len(depths)
    ratios = sr_ratios or tuple(2 ** (stages - 1 - n) for n in range(stages))
    options = {name: values[:stages] for name, values in WIDTHS.items()}
    return options | {"depths": depths, "sr_ratios": ratios}


def twins(image, depths=(2, 2), window=None, **options):
    wss = None if window is None else (window,) * len(depths)
    return Twins(
        img_size=image, patch_size=2, in_chans=2, wss=wss, num_classes=3, **shape(depths), **options
    )


def svt(image, depths=(2, 2), window=3, **options):
    return twins(image, depths, window, **options)


def pvt(image, depths=(1, 2), **options):
    return ReleasedPvt(
        image_size=image, patch_size=2, channels=2, num_classes=3, **shape(depths), **options
    )


def pvt_v2(image, depths=(1, 2), **options):
    return PyramidVisionTransformerV2(in_chans=2, num_classes=3, **shape(depths), **options)


FAMILIES = {"svt": svt, "pcpvt": twins, "pvt": pvt, "pvt_v2": pvt_v2}
UNIT = {"svt": 4, "pcpvt": 4, "pvt": 4, "pvt_v2": 8}  # of two stages


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


def randn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw_mask(units: int, ratio: float, batch: int, seed: int = 0, per_sample: bool = True):
    generator = torch.Generator().manual_seed(seed)
    return random_unit_mask(units, ratio, batch, generator=generator, per_sample=per_sample)


# ------------------------------------------- the definition: the whole grid, hidden things removed


class Dense:
    """Every token computed; hidden ones are no keys, no part of statistics, and 0 in convolutions.

    ``padding`` says whether the zero tokens with which Twins pads its windows are keys.
    """

    def __init__(self, hidden_BUV: Tensor, padding: bool = True) -> None:
        self.hidden_BUV, self.padding = hidden_BUV, padding

    def hidden(self, height: int) -> Tensor:
        factor = height // self.hidden_BUV.shape[1]
        return self.hidden_BUV.repeat_interleave(factor, 1).repeat_interleave(factor, 2)

    def norm(self, norm: nn.Module, x_BHWC: Tensor) -> Tensor:
        if isinstance(norm, DynamicTokenNorm):
            visible = ~self.hidden(x_BHWC.shape[1]).flatten(1)
            return norm(x_BHWC.flatten(1, 2), visible=visible).view(x_BHWC.shape)
        return norm(x_BHWC)

    def convolve(self, conv: nn.Conv2d, x_BHWC: Tensor) -> Tensor:
        shown = x_BHWC.masked_fill(self.hidden(x_BHWC.shape[1])[..., None], 0)
        return conv(shown.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, barred: Tensor, heads: int) -> Tensor:
        """Softmax over the keys (..., M) that are not ``barred`` (..., M)."""
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(-2, -3) for t in (q, k, v))
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        # finite, so that a window without visible keys stays finite too
        weights = logits.masked_fill(barred[..., None, None, :], -1e30).softmax(-1)
        return (weights @ v).transpose(-2, -3).flatten(-2)

    def reduced(self, attn: Any, x_BHWC: Tensor, prefix_BAC: Tensor) -> tuple[Tensor, Tensor]:
        keys = x_BHWC
        if attn.sr is not None:
            keys = self.norm(attn.norm, self.convolve(attn.sr, x_BHWC))
        barred = self.hidden(keys.shape[1]).flatten(1)
        barred = F.pad(barred, (prefix_BAC.shape[1], 0), value=False)
        k, v = attn.kv(torch.cat((prefix_BAC, keys.flatten(1, 2)), 1)).chunk(2, -1)
        q = attn.q(torch.cat((prefix_BAC, x_BHWC.flatten(1, 2)), 1))
        y = attn.proj(self.attend(q, k, v, barred, attn.num_heads))
        prefix, grid = y[:, : prefix_BAC.shape[1]], y[:, prefix_BAC.shape[1] :]
        return grid.view(x_BHWC.shape), prefix

    def local(self, attn: LocallyGroupedAttn, x_BHWC: Tensor) -> Tensor:
        height, width, side = *x_BHWC.shape[1:3], attn.ws
        below, right = -height % side, -width % side
        x = F.pad(x_BHWC, (0, 0, 0, right, 0, below))
        hidden = F.pad(self.hidden(height), (0, right, 0, below), value=not self.padding)
        windows = _windows(x, side)
        barred = _windows(hidden[..., None], side)[..., 0]
        q, k, v = attn.qkv(windows).chunk(3, -1)
        y = attn.proj(self.attend(q, k, v, barred, attn.num_heads))
        y = y.unflatten(3, (side, side)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return y[:, :height, :width]


def _windows(x_BHWC: Tensor, side: int) -> Tensor:
    """(B, rows, columns, side · side, C)."""
    parts = x_BHWC.unflatten(2, (-1, side)).unflatten(1, (-1, side))
    return parts.transpose(2, 3).flatten(3, 4)


def dense_twins(model: Twins, x: Tensor, dense: Dense) -> Tensor:
    for embed, blocks, position in zip(
        model.patch_embeds, model.blocks, model.pos_block, strict=True
    ):
        x = dense.norm(embed.norm, dense.convolve(embed.proj, x))
        for index, block in enumerate(blocks):
            y = dense.norm(block.norm1, x)
            if isinstance(block.attn, LocallyGroupedAttn):
                x = x + dense.local(block.attn, y)
            else:
                x = x + dense.reduced(block.attn, y, y.new_zeros(len(y), 0, y.shape[3]))[0]
            x = x + block.mlp(dense.norm(block.norm2, x))
            if index == 0:
                x = x + dense.convolve(position.proj[0], x)
    return dense.norm(model.norm, x)


def dense_pvt(model: ReleasedPvt, x: Tensor, dense: Dense) -> Tensor:
    last = len(model.grids)
    for stage, grid in enumerate(model.grids, 1):
        embed = model.get_submodule(f"patch_embed{stage}")
        x = dense.norm(embed.norm, dense.convolve(embed.proj, x))
        position = model.get_parameter(f"pos_embed{stage}")
        x = x + position[:, int(stage == last) :].unflatten(1, grid)
        prefix = x.new_zeros(len(x), 0, x.shape[3])
        if stage == last:
            prefix = (model.cls_token + position[:, :1]).expand(len(x), -1, -1)
        for block in model.get_submodule(f"block{stage}"):
            first = block.norm1(prefix) if stage == last else prefix
            y, first = dense.reduced(block.attn, dense.norm(block.norm1, x), first)
            x = x + y
            x = x + block.mlp(dense.norm(block.norm2, x))
            if stage == last:
                prefix = prefix + first
                prefix = prefix + block.mlp(block.norm2(prefix))
    return model.norm(x)


def dense_pvt_v2(model: PyramidVisionTransformerV2, x: Tensor, dense: Dense) -> Tensor:
    for stage in model.stages:
        embed = stage.downsample or model.patch_embed
        x = dense.norm(embed.norm, dense.convolve(embed.proj, x))
        for block in stage.blocks:
            y = dense.norm(block.norm1, x)
            x = x + dense.reduced(block.attn, y, y.new_zeros(len(y), 0, y.shape[3]))[0]
            y = block.mlp.fc1(dense.norm(block.norm2, x))
            x = x + block.mlp.fc2(block.mlp.act(dense.convolve(block.mlp.dwconv, y)))
        x = dense.norm(stage.norm, x)
    return x


def dense_latents(model: nn.Module, images: Tensor, mask_BL: Tensor, unit: int, padding=True):
    grid = images.shape[2] // unit, images.shape[3] // unit
    dense = Dense(mask_BL.view(len(images), *grid), padding)
    run = {Twins: dense_twins, ReleasedPvt: dense_pvt, PyramidVisionTransformerV2: dense_pvt_v2}
    x = run[type(model)](model, images.permute(0, 2, 3, 1), dense).flatten(1, 2)
    return torch.stack([sample[~hide] for sample, hide in zip(x, mask_BL, strict=True)])


def whole_features(model: nn.Module, images: Tensor) -> Tensor:
    """What the backbone itself computes, (B, L, C)."""
    if isinstance(model, ReleasedPvt):
        seen = []
        handle = model.norm.register_forward_hook(lambda *call: seen.append(call[2]))
        model(images)
        handle.remove()
        return seen[0][:, 1:]
    features = model.forward_features(images)
    return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features


# -------------------------------------------------------------------------------- the contract


@settings(max_examples=40)
@given(data=st.data())
def test_equals_the_dense_backbone_without_what_is_hidden(randomize, data):
    name = data.draw(st.sampled_from(sorted(FAMILIES)))
    depths = data.draw(st.sampled_from([(2,), (2, 2), (1, 2, 2)]))
    unit = (4 if name == "pvt_v2" else 2) * 2 ** (len(depths) - 1)
    grid = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    image = (grid[0] * unit, grid[1] * unit)
    options = {"window": data.draw(st.sampled_from([2, 3, 4, 7]))} if name == "svt" else {}
    model = randomize(FAMILIES[name](image, depths, **options))
    lattice = data.draw(st.sampled_from(["backbone", "published"]))
    encoder = visible_encoder(model, lattice=lattice)
    units = grid[0] * grid[1]
    hidden = data.draw(st.integers(0, units - 1))
    seed, per_sample = data.draw(st.integers(0, 99)), data.draw(st.booleans())
    mask = draw_mask(units, hidden / units, 3, seed, per_sample)
    images = randn(3, 2, *image)
    with torch.no_grad():
        expected = dense_latents(model, images, mask, unit, lattice == "backbone")
        torch.testing.assert_close(encoder(images, mask), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("grid", [(4, 4), (2, 5), (3, 1)])
def test_with_nothing_hidden_equals_the_backbone_itself(randomize, family, grid):
    image = (grid[0] * UNIT[family], grid[1] * UNIT[family])
    model = randomize(FAMILIES[family](image))
    encoder = visible_encoder(model)
    images, mask = randn(2, 2, *image), torch.zeros(grid[0] * grid[1], dtype=torch.bool)
    with torch.no_grad():
        expected = whole_features(model, images)
        for nothing in (mask, mask.expand(2, -1)):
            torch.testing.assert_close(encoder(images, nothing), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("ratio", [0.3, 0.8])
def test_gradients_equal_those_of_the_dense_backbone(randomize, family, ratio, per_sample):
    image = (4 * UNIT[family], 3 * UNIT[family])
    model = randomize(FAMILIES[family](image))
    encoder = visible_encoder(model)
    mask = draw_mask(12, ratio, 3, per_sample=per_sample)
    images = randn(3, 2, *image).requires_grad_()
    weight = randn(*encoder(images, mask).shape, seed=1)
    gradients = []
    for run in (
        encoder,
        lambda *inputs: dense_latents(model, *inputs, UNIT[family], padding=False),
    ):
        model.zero_grad()
        images.grad = None
        (run(images, mask) * weight).sum().backward()
        named = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        gradients.append(named | {"images": images.grad})
    assert gradients[0].keys() == gradients[1].keys()
    unused = {n for n, _ in model.named_parameters()} - gradients[0].keys()
    assert all(name.startswith("head.") for name in unused)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-10, rtol=0, msg=name)


def test_hidden_pixels_are_not_read(randomize, family):
    image = (4 * UNIT[family], 3 * UNIT[family])
    encoder = visible_encoder(randomize(FAMILIES[family](image)))
    images, mask = randn(3, 2, *image), draw_mask(12, 0.75, 3)
    hidden = mask.view(3, 1, 4, 3)
    hidden = hidden.repeat_interleave(encoder.unit, 2).repeat_interleave(encoder.unit, 3)
    with torch.no_grad():
        clean = encoder(images, mask)
        assert torch.equal(clean, encoder(images.masked_fill(hidden, torch.nan), mask))
        assert not torch.equal(clean, encoder(images.masked_fill(~hidden, 0.0), mask))


def test_masks_per_sample_equal_runs_per_sample(randomize, family):
    image = (4 * UNIT[family], 3 * UNIT[family])
    encoder = visible_encoder(randomize(FAMILIES[family](image)))
    images, mask = randn(3, 2, *image), draw_mask(12, 0.75, 3)
    plan = encoder.plan(mask, image)
    assert plan.num_plans == 3
    with torch.no_grad():
        together = encoder(images, mask)
        assert torch.equal(together, encoder(images, mask, plan.to("cpu")))
        alone = [encoder(images[i : i + 1], mask[i]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-12, rtol=0)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("ratio", [0.0, 0.6])
def test_dynamic_token_norm_is_told_which_tokens_exist(randomize, family, per_sample, ratio):
    """In every place that holds a LayerNorm, reduced keys too; PVT's last stage stays plain."""
    image = (4 * UNIT[family], 3 * UNIT[family])
    model = FAMILIES[family](image)
    replaced = 0
    for name, norm in list(model.named_modules()):
        plain = family == "pvt" and ("block2" in name or name == "norm")
        if isinstance(norm, nn.LayerNorm) and not plain:
            late = any(part in name for part in (".1.", "embed2", "attn.norm")) or name == "norm"
            first = name.startswith(("blocks.0.", "stages.0.")) and "attn.norm" not in name
            factor = 1 if late and not first else 2
            width = norm.normalized_shape[0]
            model.set_submodule(name, DynamicTokenNorm(width, 2, (4 * factor, 3 * factor)))
            replaced += 1
    assert replaced >= 4
    encoder = visible_encoder(randomize(model))
    images, mask = randn(3, 2, *image), draw_mask(12, ratio, 3, per_sample=per_sample)
    with torch.no_grad():
        latents = encoder(images, mask)
        expected = dense_latents(model, images, mask, UNIT[family], padding=ratio == 0)
        torch.testing.assert_close(latents, expected, atol=1e-12, rtol=1e-12)
        if ratio == 0:
            whole = whole_features(model, images)
            torch.testing.assert_close(latents, whole, atol=1e-12, rtol=1e-12)


# --------------------------------------------------------------- modules, sizes, precision


def test_the_encoder_has_the_modules_of_the_backbone(family):
    model = FAMILIES[family]((4 * UNIT[family], 3 * UNIT[family]))
    encoder = visible_encoder(model)
    assert encoder.backbone is model
    assert {id(p) for p in encoder.parameters()} == {id(p) for p in model.parameters()}
    assert list(encoder.state_dict()) == [f"backbone.{name}" for name in model.state_dict()]


@pytest.mark.parametrize("name", ["svt", "pcpvt", "pvt_v2"])
def test_images_of_another_size(randomize, name):
    model = randomize(FAMILIES[name]((16, 16)))
    encoder = visible_encoder(model)
    unit = encoder.unit
    images, mask = randn(2, 2, 3 * unit, 5 * unit), draw_mask(15, 0.6, 2)
    with torch.no_grad():
        expected = dense_latents(model, images, mask, unit, padding=False)
        torch.testing.assert_close(encoder(images, mask), expected, atol=1e-12, rtol=1e-12)


def test_stage_outputs_end_with_the_latents(randomize, family):
    image = (4 * UNIT[family], 3 * UNIT[family])
    encoder = visible_encoder(randomize(FAMILIES[family](image)))
    images, mask = randn(2, 2, *image), draw_mask(12, 0.75, 2)
    plan = encoder.plan(mask, image)
    outputs = encoder.stage_outputs(images, plan)
    assert [tuple(tokens.shape) for tokens in outputs] == [(2, 12, 8), (2, 3, 12)]
    assert torch.equal(outputs[-1], encoder(images, mask, plan))


def test_gradient_checkpointing_changes_nothing(randomize):
    model = randomize(pvt_v2((32, 32)))
    encoder = visible_encoder(model)
    gradients = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        model.zero_grad()
        encoder(randn(2, 2, 32, 32), draw_mask(16, 0.5, 2)).square().sum().backward()
        gradients.append(model.patch_embed.proj.weight.grad.clone())
    assert torch.equal(*gradients)


def test_bfloat16_autocast(randomize, family):
    image = (4 * UNIT[family], 3 * UNIT[family])
    encoder = visible_encoder(randomize(FAMILIES[family](image)).float())
    images, mask = randn(2, 2, *image).float(), draw_mask(12, 0.5, 2)
    exact = encoder(images, mask)
    with torch.autocast("cpu", torch.bfloat16):
        rough = encoder(images, mask)
    rough.sum().backward()
    assert (rough.float() - exact).square().mean() < 1e-3 * exact.square().mean()


def test_dropped_paths_and_tokens_are_those_of_the_backbone(randomize):
    """In training mode the same random numbers are drawn where nothing is hidden."""
    for name, options in (
        ("pcpvt", {"drop_path_rate": 0.5}),
        ("pvt", {"drop_path": 0.5}),
        ("pvt_v2", {"drop_path_rate": 0.5, "proj_drop_rate": 0.2}),
    ):
        image = (2 * UNIT[name], 2 * UNIT[name])
        model = randomize(FAMILIES[name](image, **options)).train()
        images = randn(4, 2, *image)
        torch.manual_seed(5)
        expected = whole_features(model, images)
        torch.manual_seed(5)
        latents = visible_encoder(model)(images, torch.zeros(4, dtype=torch.bool))
        torch.testing.assert_close(latents, expected, atol=1e-12, rtol=1e-12, msg=name)


# -------------------------------------------------------------------------------------- errors


def test_what_does_not_fit_is_refused(family):
    unit = UNIT[family]
    encoder = visible_encoder(FAMILIES[family]((4 * unit, 4 * unit)))
    with pytest.raises(ValueError) as error:  # noqa: PT011
        encoder(randn(1, 2, 4 * unit, 4 * unit + 2).float(), torch.zeros(16, dtype=torch.bool))
    size = f"{4 * unit}x{4 * unit + 2}"
    if family == "pvt":
        expected = f"images are {size}, but the backbone was built for {4 * unit}x{4 * unit}"
    else:
        expected = (
            f"images are {size}, but both sides must be multiples of the mask unit of {unit} pixels"
        )
    assert str(error.value) == expected


def test_a_pvt_v2_has_to_be_told_its_size():
    model = pvt_v2((32, 32))
    mask = torch.zeros(16, dtype=torch.bool)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        visible_encoder(model).plan(mask)
    assert str(error.value) == (
        "a PyramidVisionTransformerV2 does not know the size of its images; give "
        "image_size=(height, width) in pixels"
    )
    told = visible_encoder(model, image_size=(32, 64))
    assert told.unit_grid == (4, 8)
    assert told.plan(torch.zeros(32, dtype=torch.bool)).num_visible == 32
    with pytest.raises(ValueError) as error:  # noqa: PT011
        visible_encoder(pvt((16, 16)), image_size=(32, 16))
    assert str(error.value) == "image_size=32x16, but the backbone was built for 16x16"


def test_keys_that_a_mask_would_cut_are_refused():
    with pytest.raises(ValueError) as error:  # noqa: PT011
        visible_encoder(PyramidVisionTransformerV2(linear=True, **shape((1, 1))))
    assert str(error.value) == (
        "block 0 of stage 0 pools its keys over the whole image; visible tokens need keys that "
        "are reduced in cells (linear=False)"
    )
    with pytest.raises(ValueError) as error:  # noqa: PT011
        visible_encoder(PyramidVisionTransformerV2(**shape((1, 1), (2, 2))))
    assert str(error.value) == (
        "block 0 of stage 1 reduces cells of 2x2 tokens, which the mask units of 1x1 tokens would "
        "cut; legal sides are the divisors of 1"
    )


def test_parts_that_are_not_known_are_refused():
    model = svt((16, 16))
    model.blocks[1][0].attn = nn.Identity()
    with pytest.raises(ValueError) as error:  # noqa: PT011
        visible_encoder(model)
    assert str(error.value) == (
        "stage 1 attends with Identity; visible tokens need timm's LocallyGroupedAttn or "
        "GlobalSubSampleAttn"
    )
    model = svt((16, 16))
    model.pos_block[0] = nn.Identity()
    with pytest.raises(ValueError) as error:  # noqa: PT011
        visible_encoder(model)
    assert str(error.value) == (
        "stage 0 encodes positions with Identity; visible tokens need timm's PosConv of stride 1"
    )
