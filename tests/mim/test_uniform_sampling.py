from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.twins import Twins
from timm.models.vision_transformer import VisionTransformer

from triptych.backbones.released_pvt import ReleasedPvt
from triptych.mim.decoder import DecoderSettings
from triptych.mim.dense import DenseMaskedEncoder
from triptych.mim.masks import restore_order
from triptych.mim.objective import patchify, unpatchify
from triptych.mim.uniform_sampling import UniformMIM, chosen_cells

DECODER = DecoderSettings(dim=16, depth=1, num_heads=2)
SIZE = (32, 48)


def swin(size=SIZE):
    return SwinTransformer(
        img_size=size, patch_size=4, in_chans=2, embed_dim=8, depths=(2, 2), num_heads=(1, 2),
        window_size=2, num_classes=3, drop_path_rate=0.0,
    )  # fmt: skip


PYRAMID = {"depths": (2, 1), "num_heads": (1, 2), "mlp_ratios": (2, 2), "sr_ratios": (2, 1)}
BACKBONES = {
    "swin": swin,
    "twins": lambda: Twins(
        img_size=SIZE, in_chans=2, num_classes=3, embed_dims=(8, 16), wss=(2, 2), **PYRAMID
    ),
    "pvt_v2": lambda: PyramidVisionTransformerV2(
        in_chans=2, num_classes=3, embed_dims=(8, 16), **PYRAMID
    ),
    "pvt": lambda: ReleasedPvt(
        image_size=SIZE, channels=2, num_classes=3, embed_dims=(8, 16), **PYRAMID
    ),
}


def build(name, **options):
    torch.manual_seed(0)
    return UniformMIM(BACKBONES[name](), DECODER, image_size=SIZE, **options).double().eval()


def batch(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(3, 2, *SIZE, generator=generator).double()
    units = model.unit_grid[0] * model.unit_grid[1]
    noise = torch.rand(3, units, generator=generator)
    return images, model.hide(noise), restore_order(noise)


@given(st.integers(0, 1000))
def test_one_cell_of_each_two_by_two_stays(seed):
    model = build("swin")
    _, mask, _ = batch(model, seed)
    blocks = (~mask).view(3, 4, 2, 6, 2).sum((2, 4))
    assert torch.equal(blocks, torch.ones_like(blocks))


def test_every_cell_is_chosen_equally_often():
    model = build("swin")
    noise = torch.rand(4000, 96, generator=torch.Generator().manual_seed(0))
    visible = ~model.hide(noise)
    assert (visible.float().mean(0) - 0.25).abs().max() < 0.035


def test_the_small_image_holds_the_visible_cells():
    model = build("swin")
    images, mask, _ = batch(model)
    small = model.encoder.small_images(images, chosen_cells(mask, (4, 6)))
    assert small.shape == (3, 2, 16, 24)
    cells = patchify(images, 4)
    for sample in range(3):
        for row in range(4):
            for column in range(6):
                inside = [(2 * row + i) * 12 + 2 * column + j for i in range(2) for j in range(2)]
                (place,) = [unit for unit in inside if not mask[sample, unit]]
                block = small[sample, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                assert torch.equal(block.permute(1, 2, 0).flatten(), cells[sample, place])


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_hidden_cells_do_not_matter(name):
    model = build(name)
    images, mask, order = batch(model)
    cells = patchify(images, model.unit)
    changed = unpatchify(cells.masked_fill(mask[..., None], 7.0), model.unit, model.unit_grid)
    with torch.no_grad():
        clean = model(images, mask, None, order).prediction
        assert torch.equal(clean, model(changed, mask, None, order).prediction)


def test_latents_stand_on_their_own_cells():
    """Without attention in the decoder a unit's token is its own latent and position alone."""
    model = build("swin", secondary_ratio=0.0)
    mask = batch(model)[1]
    seen = []
    model.decoder.blocks[0].register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    model.decoder(torch.arange(24.0).double()[None, :, None].expand(3, -1, 16), mask)
    ranks = (seen[0] - model.decoder.positions)[..., 0]
    assert torch.equal(ranks[~mask].round().long().view(3, -1), torch.arange(24).expand(3, -1))
    order = model._order(mask, torch.zeros(3, 24, 1))[..., 0]
    for sample in range(3):
        visible = (~mask[sample]).nonzero()[:, 0]
        block = visible // 12 // 2 * 6 + visible % 12 // 2
        assert torch.equal(order[sample], block)


def test_each_wide_token_gives_its_cells():
    model = build("swin", secondary_ratio=0.0)
    assert (model.unit, model.expand) == (4, 2)
    assert model.encoder.dense.feature_grid == (2, 3)
    assert model.spread.out_features == 16 * 4


def test_a_quarter_is_hidden_again():
    model = build("swin")
    noise = torch.rand(4000, 96, generator=torch.Generator().manual_seed(0))
    secondary = model._secondary(restore_order(noise), 4000)
    assert torch.equal(secondary.sum(1), torch.full((4000,), 6))
    assert (secondary.float().mean(0) - 0.25).abs().max() < 0.035
    chosen = chosen_cells(model.hide(noise), (4, 6)).flatten(1)
    share = torch.stack([(chosen[secondary] == cell).float().mean() for cell in range(4)])
    assert (share - 0.25).abs().max() < 0.01


def test_secondary_masking_hides_pixels():
    model = build("swin")
    images, mask, order = batch(model)
    secondary = model._secondary(order, 3)
    small = (~mask).view(3, 4, 2, 6, 2).transpose(2, 3).flatten(3)
    again = (small & secondary.view(3, 4, 6, 1)).unflatten(3, (2, 2)).transpose(2, 3).flatten(1)
    cells = patchify(images, 4)
    changed = unpatchify(cells.masked_fill(again[..., None], 7.0), 4, (8, 12))
    with torch.no_grad():
        clean = model(images, mask, None, order).prediction
        assert torch.equal(clean, model(changed, mask, None, order).prediction)
        whole = build("swin", secondary_ratio=0.0)
        assert not torch.equal(whole(images, mask).prediction, whole(changed, mask).prediction)


def test_a_swin_on_the_small_grid_is_a_swin_of_that_size():
    """Where windows fit both grids the weights mean the same at either size."""
    torch.manual_seed(0)
    large, small = swin((64, 96)).double().eval(), swin((32, 48)).double().eval()
    small.load_state_dict(
        {n: t for n, t in large.state_dict().items() if not n.endswith("attn_mask")}, strict=False
    )
    images = torch.randn(2, 2, 32, 48).double()
    mask = torch.rand(2, 24) < 0.5
    encoders = (
        DenseMaskedEncoder(large, 8, (32, 48), resized=True).double(),
        DenseMaskedEncoder(small, 8).double(),
    )
    encoders[1].mask_token.data.copy_(encoders[0].mask_token.data)
    with torch.no_grad():
        torch.testing.assert_close(
            encoders[0](images, mask), encoders[1](images, mask), atol=1e-12, rtol=0
        )


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_training_reaches_everything_but_the_classifier(name):
    torch.manual_seed(0)
    model = build(name).float()
    images, mask, order = batch(model)
    images = images.float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(images, mask, None, order).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert all(".head." in name for name in without)


def test_errors():
    model = build("swin")
    images, mask, order = batch(model)
    for wrong, sentence in (
        (
            lambda: model(images, mask),
            "secondary_ratio=0.25 hides visible cells by the order of the noise, ids_restore; it "
            "is missing",
        ),
        (
            lambda: model(images, torch.roll(mask, 1, 1), None, order),
            "a uniform mask leaves 1 of each 2x2 cells visible, this one 0 to ",
        ),
        (lambda: model.hide(torch.rand(1, 96), 0.5), "uniform sampling hides 0.75 of the cells, "),
        (lambda: build("swin", cell=3), "cells of 3 pixels do not divide the total stride of 8"),
        (lambda: build("swin", secondary_ratio=1.0), "secondary ratio must be in [0, 1), got 1.0"),
        (
            lambda: UniformMIM(swin((24, 48)), DECODER),
            "images are 24x48, but uniform sampling needs multiples of twice the total stride, 16",
        ),
        (
            lambda: UniformMIM(
                VisionTransformer(img_size=32, patch_size=4, embed_dim=16, depth=1, num_heads=2),
                DECODER,
                cell=4,
            ),
            "image_size=16x16, but the backbone was built for 32x32",
        ),
    ):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            wrong()
        assert str(error.value).startswith(sentence)
