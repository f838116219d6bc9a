from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from triptych.mim.decoder import (
    DecoderSettings,
    PixelShuffleHead,
    TransformerDecoder,
    sincos_positions,
)
from triptych.mim.masks import mask_from_noise, restore_order
from triptych.mim.objective import hidden_units, patchify

SMALL = DecoderSettings(dim=16, depth=1, num_heads=2)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("dim", "side"), [(32, 7), (16, 4)])
def test_published_positions(golden, dim, side):
    expected = golden("misc_public").tensor(f"sincos/{dim}x{side}")
    torch.testing.assert_close(sincos_positions(dim, (side, side)), expected, atol=1e-6, rtol=0)


def test_the_first_half_of_a_position_is_the_column():
    positions = sincos_positions(8, (2, 3)).view(2, 3, 8)
    assert torch.equal(positions[0, :, :4], positions[1, :, :4])
    assert torch.equal(positions[:, 0, 4:], positions[:, 1, 4:])
    assert not torch.equal(positions[0, 0, :4], positions[0, 1, :4])
    assert not torch.equal(positions[0, 0, 4:], positions[1, 0, 4:])


def placed(decoder, latents, mask, ids=None):
    """What enters the first block, without positions."""
    seen = []
    decoder.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    decoder(latents, mask, ids)
    return seen[0] - decoder.positions


def test_latents_stand_on_their_own_units():
    decoder = TransformerDecoder(8, (2, 3), 5, SMALL)
    latents = randn(2, 2, 8)
    mask = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 1, 1, 1, 1, 0]]).bool()
    x = placed(decoder, latents, mask)
    torch.testing.assert_close(x[~mask], decoder.embed(latents).flatten(0, 1), atol=1e-6, rtol=0)
    assert (x[mask] - decoder.mask_token[0]).abs().max() < 1e-6


def test_the_published_order_places_them_by_noise():
    decoder = TransformerDecoder(8, (2, 3), 5, DecoderSettings(16, 1, 2, order="published"))
    noise = torch.tensor([[0.9, 0.2, 0.8, 0.7, 0.1, 0.6]])
    mask = mask_from_noise(noise, 0.6)
    assert (~mask).nonzero()[:, 1].tolist() == [1, 4]
    latents = randn(1, 2, 8)
    x = placed(decoder, latents, mask, restore_order(noise))
    swapped = decoder.embed(latents)[0, [1, 0]]  # unit 4 has the least noise and gets latent 0
    torch.testing.assert_close(x[0, [1, 4]], swapped, atol=1e-6, rtol=0)


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("order", ["row_major", "published"])
def test_hidden_units_alone_are_predicted_as_among_all(depth, order):
    decoder = TransformerDecoder(8, (2, 3), 5, DecoderSettings(16, depth, 2, order=order)).double()
    noise = torch.rand(3, 6, generator=torch.Generator().manual_seed(2))
    mask = mask_from_noise(noise, 0.6)
    arguments = randn(3, 2, 8).double(), mask, restore_order(noise)
    gradients = []
    for prediction in (
        decoder(*arguments)[mask],
        decoder(*arguments, hidden_units(mask)),
    ):
        decoder.zero_grad()
        prediction.square().sum().backward()
        gradients.append((prediction, *(p.grad.clone() for p in decoder.parameters())))
    for among_all, alone in zip(*gradients, strict=True):
        torch.testing.assert_close(alone, among_all, atol=1e-12, rtol=1e-12)


def test_the_last_block_spares_visible_units():
    decoder = TransformerDecoder(8, (2, 3), 5, DecoderSettings(16, 1, 2))
    mask = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 1, 1, 1, 1, 0]]).bool()
    tokens = []
    for layer in (decoder.head, decoder.blocks[0].mlp.fc1, decoder.blocks[0].attn.proj):
        layer.register_forward_hook(lambda _m, inputs, _o: tokens.append(inputs[0].shape[:-1]))
    decoder(randn(2, 2, 8), mask, None, hidden_units(mask))
    assert [shape.numel() for shape in tokens] == [8, 8, 8]


@pytest.mark.parametrize("side", [1, 2])
def test_the_head_lays_values_out_as_pixels(side):
    """SimMIM's convolution and pixel shuffle on the whole grid, cut into units."""
    head = PixelShuffleHead(4, 3, 2)
    grid = (2 * side, 3 * side)
    features = randn(2, grid[0] * grid[1], 4)
    mask = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 1, 0, 0, 0, 0]]).bool()
    values = head.linear(features).transpose(1, 2).unflatten(2, grid)
    images = F.pixel_shuffle(values, 3)
    assert images.shape == (2, 2, 6 * side, 9 * side)
    expected = patchify(images, 3 * side)[mask]
    found = head(features, grid, 3 * side, hidden_units(mask))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (DecoderSettings(10, 1, 3), "decoder dim 10 is not a multiple of its 3 heads"),
        (DecoderSettings(6, 1, 3), "positions need a width that is a multiple of 4, got 6"),
        (DecoderSettings(order="noise"), "'noise' is not a valid LatentOrder"),
    ],
)
def test_errors(settings, sentence):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        TransformerDecoder(8, (2, 3), 5, settings)
    assert str(error.value) == sentence


def test_the_published_order_needs_the_noise():
    decoder = TransformerDecoder(8, (2, 3), 5, DecoderSettings(16, 1, 2, order="published"))
    with pytest.raises(ValueError, match=r"^order='published' places latents by"):
        decoder(randn(1, 2, 8), torch.tensor([[1, 0, 1, 1, 0, 1]]).bool())
