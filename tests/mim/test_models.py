from __future__ import annotations

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

from triptych.mim.checkpoints import decoder_state, swin_state
from triptych.mim.decoder import DecoderSettings
from triptych.mim.masks import restore_order, sample_masks
from triptych.mim.models import GreenMIM, SimMIM
from triptych.mim.objective import patchify

GOLDENS = ("swin_p1", "swin_p2", "swin_p3", "swin_p4")
DECODER = DecoderSettings(dim=16, depth=1, num_heads=2)


def published_model(reference, build_golden_swin, order):
    config = reference.config
    settings = DecoderSettings(
        config["dec_dim"], config["dec_depth"], config["dec_heads"], order=order
    )
    model = GreenMIM(
        build_golden_swin(reference),
        settings,
        norm_pixels=config.get("norm_pix", True),
        lattice="published",
    )
    model.backbone.load_state_dict(swin_state(reference.weights()))
    model.decoder.load_state_dict(decoder_state(reference.weights()))
    return model


def ours(named):
    """Published names to those of the whole model."""
    backbone = {f"encoder.backbone.{name}": value for name, value in swin_state(named).items()}
    return backbone | {f"decoder.{name}": value for name, value in decoder_state(named).items()}


@pytest.mark.parametrize("name", GOLDENS)
@pytest.mark.parametrize(("order", "suffix"), [("row_major", "_fixed"), ("published", "")])
def test_predictions_of_the_released_code(golden, build_golden_swin, name, order, suffix):
    reference = golden(name)
    model = published_model(reference, build_golden_swin, order)
    images, mask = reference.tensor("imgs"), reference.mask
    assert torch.equal(
        restore_order(reference.tensor("noise")).expand(2, -1), reference.tensor("ids_restore")
    )
    ids = reference.tensor("ids_restore")
    output = model(images, mask, ids_restore=ids)
    expected = reference.tensor(f"pred{suffix}")
    assert torch.equal(output.hidden, mask.flatten().nonzero()[:, 0])
    torch.testing.assert_close(output.prediction, expected[mask], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(output.loss, reference.tensor(f"loss{suffix}"), atol=2e-6, rtol=0)
    whole = model.decoder(model.encoder(images, mask), mask, ids)
    torch.testing.assert_close(whole, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", GOLDENS)
def test_masks_of_each_sample(golden, build_golden_swin, name):
    """Sample by sample the published arithmetic, one mask at a time, is what a batch gives."""
    reference = golden(name)
    model = published_model(reference, build_golden_swin, "row_major").double()
    images = reference.tensor("imgs").double()
    other = torch.roll(reference.mask[:1], 3, 1)
    mask = torch.cat((reference.mask[:1], other))
    with torch.no_grad():
        output = model(images, mask)
        single = [model(images[i : i + 1], mask[i]) for i in range(2)]
    torch.testing.assert_close(
        output.loss, (single[0].loss + single[1].loss) / 2, rtol=1e-12, atol=0
    )
    predictions = torch.cat([part.prediction for part in single])
    torch.testing.assert_close(output.prediction, predictions, atol=1e-12, rtol=0)
    hidden = int(mask[0].sum())
    first = reference.tensor("pred_fixed")[0][mask[0]].double()
    torch.testing.assert_close(output.prediction[:hidden], first, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", GOLDENS)
@pytest.mark.parametrize(("order", "suffix"), [("row_major", "_fixed"), ("published", "")])
def test_gradients_of_the_released_code(golden, build_golden_swin, name, order, suffix):
    reference = golden(name)
    model = published_model(reference, build_golden_swin, order)
    ids = reference.tensor("ids_restore")
    model(reference.tensor("imgs"), reference.mask, ids_restore=ids).loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    norms = dict(zip(reference.grad_names, reference.tensor(f"gradnorm{suffix}"), strict=True))
    assert gradients.keys() == ours(norms).keys()
    for parameter, norm in ours(norms).items():
        torch.testing.assert_close(
            gradients[parameter].double().norm(), norm, rtol=1e-4, atol=1e-8, msg=parameter
        )
    prefix = f"grad{suffix}/"
    selected = {
        n.removeprefix(prefix): reference.tensor(n)
        for n in reference.arrays
        if n.startswith(prefix)
    }
    selected["patch_embed.proj.weight"] = selected["encoder.patch_embed.proj.weight"]
    for parameter, expected in ours(selected).items():
        bound = 2e-5 * float(expected.abs().max()) + 1e-8
        torch.testing.assert_close(gradients[parameter], expected, atol=bound, rtol=0)


def swin():
    return SwinTransformer(
        img_size=(16, 24), patch_size=2, in_chans=2, embed_dim=8, depths=(2, 2), num_heads=(1, 2),
        window_size=4, num_classes=3, drop_path_rate=0.0,
    )  # fmt: skip


def vit():
    return VisionTransformer(
        img_size=(16, 24), patch_size=4, in_chans=2, embed_dim=16, depth=2, num_heads=2,
        num_classes=3,
    )  # fmt: skip


MODELS = {
    "green_swin": lambda: GreenMIM(swin(), DECODER),
    "green_vit": lambda: GreenMIM(vit(), DECODER, norm_pixels=False),
    "simmim_swin": lambda: SimMIM(swin()),
    "simmim_vit": lambda: SimMIM(vit(), unit=8, norm_pixels=True),
}


@pytest.fixture(params=sorted(MODELS))
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


def batch(model):
    images = torch.randn(3, 2, 16, 24, generator=torch.Generator().manual_seed(0))
    units = model.unit_grid[0] * model.unit_grid[1]
    return images, sample_masks(units, 0.5, seed=0, epoch=0, indices=range(3))


def test_shapes_and_the_backbone_itself():
    backbone = swin()
    for kind in (GreenMIM(backbone, DECODER), SimMIM(backbone)):
        assert kind.backbone is backbone
        assert (kind.unit, kind.unit_grid) == (4, (4, 6))
        assert len(list(kind.parameters())) == len({id(p) for p in kind.parameters()})
        assert len(kind.state_dict()) == len(set(kind.state_dict()))


def test_the_loss_compares_prediction_and_targets(model):
    images, mask = batch(model)
    with torch.no_grad():
        output = model(images, mask, model.plan(mask))
    units = patchify(images, model.unit)
    if model.norm_pixels:
        units = (units - units.mean(2, keepdim=True)) / (units.var(2, keepdim=True) + 1e-6).sqrt()
    error = output.prediction - units[mask]
    expected = error.square().mean() if isinstance(model, GreenMIM) else error.abs().mean()
    torch.testing.assert_close(output.loss, expected, atol=1e-6, rtol=0)
    assert output.prediction.shape == (int(mask.sum()), model.unit**2 * 2)


def test_reconstruction_keeps_what_is_visible(model):
    images, mask = batch(model)
    with torch.no_grad():
        units = patchify(model.reconstruct(images, mask), model.unit)
        output = model(images, mask)
    original = patchify(images, model.unit)
    assert torch.equal(units[~mask], original[~mask])
    expected = output.prediction
    if model.norm_pixels:
        hidden = original[mask]
        deviation = (hidden.var(1, keepdim=True) + 1e-6).sqrt()
        expected = expected * deviation + hidden.mean(1, keepdim=True)
    torch.testing.assert_close(units[mask], expected, atol=1e-6, rtol=0)


def test_one_mask_for_the_batch(model):
    images, mask = batch(model)
    with torch.no_grad():
        one = model(images, mask[0])
        copies = model(images, mask[:1].expand(3, -1))
    assert torch.equal(one.prediction, copies.prediction)
    assert torch.equal(one.hidden, copies.hidden)


def test_gradients_reach_everything_but_the_classifier(model):
    model(*batch(model)).loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert all(".backbone.head." in name for name in without)


def test_a_few_steps_lower_the_loss(model):
    images, mask = batch(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(images, mask).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_bfloat16_autocast(model):
    images, mask = batch(model)
    with torch.no_grad():
        exact = model(images, mask).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images, mask).loss
    loss.backward()
    torch.testing.assert_close(loss.float(), exact, rtol=0.05, atol=0)


def test_errors():
    model = GreenMIM(swin(), DecoderSettings(16, 1, 2, order="published"))
    images, mask = batch(model)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        model(images, mask)
    assert str(error.value) == "order='published' places latents by ids_restore; it is missing"
    for kind in (GreenMIM(swin(), DECODER), SimMIM(swin())):
        with pytest.raises(ValueError, match=r"^mask hides none of the 24 mask units"):
            kind(images, torch.zeros_like(mask))
