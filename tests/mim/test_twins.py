"""Twins against the numbers of GreenMIM's released code."""

from __future__ import annotations

import pytest
import torch
from timm.models.twins import Twins
from torch import nn

from triptych.mim.checkpoints import decoder_state
from triptych.mim.decoder import DecoderSettings
from triptych.mim.models import GreenMIM
from triptych.mim.twins_checkpoints import twins_state
from triptych.mim.visible import visible_encoder

GOLDENS = ("twins_p1", "twins_p2", "twins_p3_pegres")


def golden_twins(reference) -> Twins:
    """timm's Twins of a reference file, with its weights in double precision."""
    config = reference.config
    stages = len(config["depths"])
    model = Twins(
        img_size=config["img"],
        patch_size=config["patch"],
        embed_dims=config["embeds"],
        num_heads=config["heads"],
        mlp_ratios=(4,) * stages,
        depths=config["depths"],
        sr_ratios=config["sr"],
        wss=(config["window"],) * stages,
        num_classes=0,
    )
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    model.double().load_state_dict(state(reference, reference.weights()))
    return model


def state(reference, named):
    named = {name: tensor.double() for name, tensor in named.items()}
    return twins_state(named, lost_residual=not reference.config.get("peg_residual", False))


@pytest.mark.parametrize("name", GOLDENS)
def test_latents_of_the_released_code(golden, name):
    reference = golden(name)
    encoder = visible_encoder(golden_twins(reference))
    images, mask = reference.tensor("imgs"), reference.mask
    with torch.no_grad():
        exact = encoder(images.double(), mask)
        latent = encoder.float()(images, mask)
    for form in ("latent_f64", "dense_masked_f64"):
        torch.testing.assert_close(exact, reference.tensor(form), atol=1e-12, rtol=0)
    torch.testing.assert_close(latent, reference.tensor("latent"), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", GOLDENS)
def test_stages_of_the_released_code(golden, name):
    """Tokens behind each later patch embedding, and where they lie."""
    reference = golden(name)
    model = golden_twins(reference).float()
    encoder = visible_encoder(model)
    plan = encoder.plan(reference.mask)
    shapes = encoder.stage_shapes(encoder.image_size)
    coordinates = [reference.tensor("coords_vis")]
    coordinates += [reference.tensor(f"stage{n}/coords_in") for n in range(1, len(shapes))]
    for stage, shape, places in zip(plan.stages, shapes, coordinates, strict=True):
        assert torch.equal(stage.tokens[0], places @ torch.tensor([shape.grid[1], 1]))
    begun = []
    for embed in list(model.patch_embeds)[1:]:
        embed.norm.register_forward_hook(lambda *call: begun.append(call[2]))
    with torch.no_grad():
        encoder(reference.tensor("imgs"), reference.mask, plan)
    assert len(begun) == len(shapes) - 1
    for number, tokens in enumerate(begun, 1):
        expected = reference.tensor(f"stage{number}/in")
        torch.testing.assert_close(tokens, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["twins_p2", "twins_p3_pegres"])
def test_steps_of_the_released_code(golden, name):
    """Prediction, loss and gradients of the whole model, with every latent on its own unit."""
    reference = golden(name)
    config = reference.config
    settings = DecoderSettings(config["dec_dim"], config["dec_depth"], config["dec_heads"])
    model = GreenMIM(golden_twins(reference), settings).double()
    decoder = {n: t.double() for n, t in decoder_state(reference.weights()).items()}
    model.decoder.load_state_dict(decoder)
    mask = reference.mask
    output = model(reference.tensor("imgs").double(), mask)
    loss = reference.tensor("loss_fixed_f64")
    torch.testing.assert_close(output.loss, loss, atol=1e-13, rtol=0)
    expected = reference.tensor("pred_fixed")[mask]
    torch.testing.assert_close(output.prediction.float(), expected, atol=2e-5, rtol=1e-5)
    output.loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    norms = dict(zip(reference.grad_names, reference.tensor("gradnorm_fixed"), strict=True))
    encoder = {n.removeprefix("encoder."): v for n, v in norms.items() if "encoder." in n}
    expected = ours(encoder, norms)
    assert gradients.keys() == expected.keys()
    for parameter, norm in expected.items():
        torch.testing.assert_close(
            gradients[parameter].norm(), norm, rtol=1e-4, atol=1e-8, msg=parameter
        )
    prefix = "grad_fixed/"
    selected = {
        n.removeprefix(prefix): reference.tensor(n)
        for n in reference.arrays
        if n.startswith(prefix)
    }
    for parameter, tensor in ours(twins_state(selected, lost_residual=False), selected).items():
        bound = 2e-5 * float(tensor.abs().max()) + 1e-8
        torch.testing.assert_close(
            gradients[parameter].float(), tensor, atol=bound, rtol=0, msg=parameter
        )


def ours(encoder, published):
    """By the names of the whole model: the encoder's, and the decoder's in published names."""
    backbone = {f"encoder.backbone.{name}": value for name, value in encoder.items()}
    return backbone | {f"decoder.{n}": value for n, value in decoder_state(published).items()}


def test_the_lost_residual_is_one_less_at_the_centre(golden):
    reference = golden("twins_p2")
    weights = reference.weights()
    name = "pos_block.0.proj.0.weight"
    lost, kept = twins_state(weights)[name], twins_state(weights, lost_residual=False)[name]
    centre = torch.zeros(3, 3)
    centre[1, 1] = 1
    torch.testing.assert_close(kept - lost, centre.expand_as(kept))
    assert torch.equal(kept, weights[f"encoder.{name}"])
    with pytest.raises(ValueError) as error:  # noqa: PT011
        twins_state({"head.weight": torch.zeros(1)})
    assert str(error.value) == (
        "not a Twins checkpoint: no pos_block.0.proj.0.weight among ['head.weight']"
    )
