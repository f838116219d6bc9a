"""With its plan given, a step never asks a tensor for its values: a device is not waited for."""

from __future__ import annotations

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from torch.utils._python_dispatch import TorchDispatchMode

from triptych.mim import DecoderSettings, GreenMIM, random_unit_mask

# What reads values on the host, or has an output whose size depends on them.
READS = {
    torch.ops.aten._local_scalar_dense,
    torch.ops.aten.is_nonzero,
    torch.ops.aten.equal,
    torch.ops.aten.nonzero,
    torch.ops.aten.masked_select,
    torch.ops.aten._unique2,
    torch.ops.aten.unique_consecutive,
}


class NoReading(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in READS, func
        return func(*args, **(kwargs or {}))


def model():
    backbone = SwinTransformer(
        img_size=32, patch_size=2, in_chans=2, embed_dim=8, depths=(2, 2), num_heads=(1, 2),
        window_size=4, num_classes=0,
    )  # fmt: skip
    return GreenMIM(backbone, DecoderSettings(16, 1, 2))


def masks(per_sample):
    generator = torch.Generator().manual_seed(0)
    return random_unit_mask(64, 0.75, 3, generator=generator, per_sample=per_sample)


def test_the_guard_finds_what_it_looks_for():
    for read in (lambda t: t.any().item(), lambda t: bool(t.any()), lambda t: t.nonzero()):
        with pytest.raises(AssertionError), NoReading():
            read(torch.ones(3))


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("grouping", ["cheapest", "bucketed", "published"])
def test_encoding_reads_no_values(per_sample, grouping):
    encoder = model().encoder
    encoder.grouping = grouping
    mask = masks(per_sample)
    plan, images = encoder.plan(mask), torch.randn(3, 2, 32, 32)
    with NoReading():
        encoder(images, mask, plan).square().sum().backward()


@pytest.mark.parametrize("per_sample", [False, True])
def test_encoding_works_without_any_values(per_sample):
    """On the meta device there is nothing to read, and the path is that of accelerators."""
    whole, mask = model(), masks(per_sample)
    plan = whole.plan(mask)
    latents = whole.encoder.to("meta")(torch.empty(3, 2, 32, 32, device="meta"), mask, plan)
    latents.sum().backward()
    assert latents.shape == (3, 16, 16)
    assert latents.is_meta


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("per_sample", [False, True])
def test_a_step_on_a_gpu_does_not_synchronize(per_sample):
    whole, mask = model().cuda(), masks(per_sample)
    plan = whole.plan(mask).pin_memory()
    images = torch.randn(3, 2, 32, 32, device="cuda")
    whole(images, mask, plan.to("cuda")).loss.backward()  # libraries set themselves up
    torch.cuda.set_sync_debug_mode("error")
    try:
        whole(images, mask, plan.to("cuda")).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
