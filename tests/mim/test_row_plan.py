"""The three groupings: what shares a row, and of which shapes rows are."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.swin_transformer import SwinTransformer

from triptych.choices import Grouping
from triptych.mim.masks import random_unit_mask
from triptych.mim.rows import pack_rows
from triptych.mim.visible import visible_encoder
from triptych.mim.windows import Lattice, window_lattice

ROOT = Path(__file__).parents[2]


def visible_tokens(plans, units=7, side=8, seed=0):
    """Numbers (P, N) of the visible tokens on a grid whose units are ``side`` tokens wide."""
    mask = random_unit_mask(units**2, 0.75, plans, generator=torch.Generator().manual_seed(seed))
    visible = (~mask).numpy().reshape(plans, units, units)
    visible = visible.repeat(side, 1).repeat(side, 2).reshape(plans, -1)
    return np.nonzero(visible)[1].reshape(plans, -1)


def windows_of_rows(rows):
    return [set(row[row >= 0].tolist()) for row in rows.window.numpy()]


@pytest.mark.parametrize("grouping", list(Grouping))
@pytest.mark.parametrize("plans", [1, 3])
@pytest.mark.parametrize("shift", [0, 3])
def test_every_window_is_in_one_row(grouping, plans, shift):
    lattice = window_lattice((56, 56), (7, 7), (shift, shift), Lattice.published)
    tokens = visible_tokens(plans)
    rows = pack_rows(lattice, tokens, 96, grouping)
    windows = windows_of_rows(rows)
    assert sum(map(len, windows)) == len(set().union(*windows))
    slots = rows.slots
    assert torch.equal(slots.index[slots.inverse], torch.arange(tokens.size))
    window = lattice.window[tokens] + lattice.num_windows * np.arange(plans)[:, None]
    assert np.array_equal(rows.window.flatten()[slots.inverse].numpy(), window.ravel())
    position = rows.position.flatten()[slots.inverse].numpy()
    assert np.array_equal(position, lattice.position[tokens].ravel())
    assert int(slots.empty.sum()) == rows.window.numel() - tokens.size


@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize(("side", "grid"), [(8, 56), (4, 28), (2, 14)])
def test_published_rows_are_those_of_the_released_code(shift, side, grid, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.published_greenmim import plan_groups

    lattice = window_lattice((grid, grid), (7, 7), (shift, shift), Lattice.published)
    for seed in range(5):
        tokens = visible_tokens(1, side=side, seed=seed)
        rows = pack_rows(lattice, tokens, 96, Grouping.published)
        coordinates = torch.from_numpy(np.stack((tokens[0] // grid, tokens[0] % grid), 1))
        groups = plan_groups(coordinates, 7, shift)
        assert rows.window.shape == groups.tokens.shape
        if rows.slots is None:
            continue
        row_of_ours = rows.slots.inverse // rows.window.shape[1]
        row_of_theirs = groups.slots // groups.tokens.shape[1]
        assert torch.equal(row_of_ours, row_of_theirs)


def test_bucketed_shapes_hardly_change():
    lattice = window_lattice((56, 56), (7, 7), (3, 3), Lattice.published)
    shapes = {grouping: set() for grouping in Grouping}
    for seed in range(60):
        tokens = visible_tokens(4, seed=seed)
        for grouping, seen in shapes.items():
            seen.add(tuple(pack_rows(lattice, tokens, 96, grouping).window.shape))
    assert len(shapes[Grouping.bucketed]) <= 3
    assert len(shapes[Grouping.bucketed]) < len(shapes[Grouping.cheapest])
    assert {capacity for _, capacity in shapes[Grouping.bucketed]} == {56}


def small_swin():
    return SwinTransformer(
        img_size=(32, 48), patch_size=2, in_chans=2, embed_dim=8, depths=(2, 2), num_heads=(1, 2),
        window_size=4, num_classes=3,
    )  # fmt: skip


@pytest.mark.parametrize("grouping", ["bucketed", "published"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_groupings_give_the_same_latents_and_gradients(randomize, grouping, per_sample):
    model = randomize(small_swin())
    images = torch.randn(3, 2, 32, 48, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    mask = random_unit_mask(96, 0.75, 3, generator=generator, per_sample=per_sample)
    latents, gradients = [], []
    for name in ("cheapest", grouping):
        model.zero_grad()
        latents.append(visible_encoder(model, grouping=name)(images, mask))
        latents[-1].square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*latents, atol=1e-12, rtol=0)
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other, atol=1e-11, rtol=0)


def tensors_of(plan):
    found = []
    plan._map(lambda tensor: (found.append(tensor), tensor)[1])
    return found


def test_a_plan_travels_as_one_buffer():
    encoder = visible_encoder(small_swin())
    plan = encoder.plan(random_unit_mask(96, 0.75, 3, generator=torch.Generator().manual_seed(0)))
    arrived = pickle.loads(pickle.dumps(plan))
    moved = arrived.to("cpu")
    for own, sent, back in zip(*map(tensors_of, (plan, arrived, moved)), strict=True):
        assert own.dtype == sent.dtype
        assert torch.equal(own, sent)
        assert torch.equal(own, back)
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors_of(arrived)}) == 1
    assert (arrived.num_plans, arrived.num_units, arrived.num_visible) == (3, 96, 24)
