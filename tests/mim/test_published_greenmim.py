"""The baseline of the benchmarks is what the released code computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from triptych.mim.checkpoints import decoder_state, swin_state
from triptych.mim.decoder import DecoderSettings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def published(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import published_greenmim

    return published_greenmim


def test_groups_of_the_released_code(golden, published):
    arrays = golden("grouping_public").arrays
    for i in range(0, len(arrays["n_windows"]), 5):
        counts = arrays["counts"][i, : arrays["n_windows"][i]].tolist()
        groups = published.group_windows(counts, int(arrays["group_size"][i]))
        assert len(groups) == arrays["official_n_groups"][i]
        official = arrays["official_assignment"][i]
        for number, group in enumerate(groups):
            assert np.flatnonzero(official[: len(counts)] == number).tolist() == group


@pytest.mark.parametrize("name", ["swin_p1", "swin_p2", "swin_p3", "swin_p4"])
def test_step_of_the_released_code(golden, build_golden_swin, published, name):
    reference = golden(name)
    config = reference.config
    settings = DecoderSettings(config["dec_dim"], config["dec_depth"], config["dec_heads"])
    model = published.PublishedGreenMIM(build_golden_swin(reference), settings)
    model.backbone.load_state_dict(swin_state(reference.weights()))
    model.decoder.load_state_dict(decoder_state(reference.weights()))
    images, mask = reference.tensor("imgs"), reference.mask[0]
    latents = model.encode(images, mask)
    torch.testing.assert_close(latents, reference.tensor("latent"), atol=2e-5, rtol=1e-5)
    exact = model.double().encode(images.double(), mask)
    torch.testing.assert_close(exact, reference.tensor("latent_f64"), atol=1e-12, rtol=0)
    loss = model.float()(images, mask)
    if config.get("norm_pix", True):
        torch.testing.assert_close(loss, reference.tensor("loss_fixed"), atol=2e-6, rtol=0)
    prediction = model.decoder(latents, mask)
    torch.testing.assert_close(prediction, reference.tensor("pred_fixed"), atol=2e-5, rtol=1e-5)
