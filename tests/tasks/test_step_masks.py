"""Masks that come with the batch: a function of (seed, epoch, image), ready before the step."""

from __future__ import annotations

import pickle

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer

from triptych.data.loading import make_loader
from triptych.data.samples import Batch, ImageDataset
from triptych.mim import DecoderSettings, GreenMIM, restore_order, sample_masks, sample_noise
from triptych.tasks.step_masks import MaskedImages, MaskPlanner

COUNT, UNITS = 24, 16


class Numbers(ImageDataset):
    labels = torch.arange(COUNT)

    def __getitems__(self, keys):
        indices = torch.tensor([key.index for key in keys])
        images = indices.view(-1, 1, 1, 1).expand(-1, 1, 16, 16).float()
        return Batch(images, self.labels[indices], indices)


def model(order="row_major"):
    backbone = SwinTransformer(
        img_size=16, patch_size=2, in_chans=1, embed_dim=8, depths=(2, 2), num_heads=(1, 2),
        window_size=4, num_classes=0,
    )  # fmt: skip
    return GreenMIM(backbone, DecoderSettings(16, 1, 2, order=order))


def planner(**changes):
    return MaskPlanner(model(), **{"ratio": 0.75, "per_sample": True, "seed": 5, **changes})


def loader(workers=0, **changes):
    images = MaskedImages(Numbers(), planner(**changes))
    return make_loader(images, batch_size=8, seed=1, shuffle=True, num_workers=workers)


def tensors_of(plan):
    found = []
    plan._map(lambda tensor: (found.append(tensor), tensor)[1])
    return found


def test_masks_are_those_of_seed_epoch_and_image():
    batches = loader()
    for epoch in (0, 1):
        for batch in batches:
            expected = sample_masks(UNITS, 0.75, seed=5, epoch=epoch, indices=batch.indices)
            assert torch.equal(batch.masks.mask, expected)
            assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.indices)


def test_the_plan_is_the_models_own():
    whole = model()
    for batch in loader():
        own = tensors_of(whole.plan(batch.masks.mask))
        for ours, theirs in zip(own, tensors_of(batch.masks.plan), strict=True):
            assert torch.equal(ours, theirs)
        assert torch.isfinite(whole(batch.images, batch.masks.mask, batch.masks.plan).loss)


def test_a_worker_and_a_resumed_loader_give_the_same_masks():
    here = [(batch.indices, batch.masks) for batch in loader()]
    there = [(batch.indices, batch.masks) for batch in loader(workers=1)]
    resumed = loader()
    resumed.set_position(0, 1)
    for (indices, masks), (others, arrived) in zip(here, there, strict=True):
        assert torch.equal(indices, others)
        assert torch.equal(masks.mask, arrived.mask)
        for ours, theirs in zip(tensors_of(masks.plan), tensors_of(arrived.plan), strict=True):
            assert torch.equal(ours, theirs)
    for (indices, masks), batch in zip(here[1:], resumed, strict=True):
        assert torch.equal(indices, batch.indices)
        assert torch.equal(masks.mask, batch.masks.mask)


def test_one_mask_for_the_batch_is_that_of_its_first_image():
    batch = next(iter(loader(per_sample=False)))
    expected = sample_masks(UNITS, 0.75, seed=5, epoch=0, indices=batch.indices[:1])
    assert torch.equal(batch.masks.mask, expected.expand(8, -1))
    assert batch.masks.plan.num_plans == 1


def test_ranks_come_only_where_they_are_needed():
    assert planner()(0, [3, 4]).ids_restore is None
    published = MaskPlanner(model("published"), ratio=0.75, per_sample=True, seed=5)
    noise = sample_noise(UNITS, seed=5, epoch=2, indices=[3, 4])
    assert torch.equal(published(2, [3, 4]).ids_restore, restore_order(noise))


def test_the_planner_has_no_weights():
    whole = model()
    own = MaskPlanner(whole, ratio=0.75, per_sample=True, seed=5)
    assert all(parameter.is_meta for parameter in own.model.parameters())
    assert not any(parameter.is_meta for parameter in whole.parameters())
    again = pickle.loads(pickle.dumps(own))
    assert torch.equal(again(1, [2]).mask, own(1, [2]).mask)


@pytest.mark.parametrize("per_sample", [False, True])
def test_the_mask_stays_on_the_host(per_sample):
    masks = planner(per_sample=per_sample)(0, [0, 1]).to(torch.device("meta"))
    assert masks.mask.device.type == "cpu"
    assert all(tensor.is_meta for tensor in tensors_of(masks.plan))
