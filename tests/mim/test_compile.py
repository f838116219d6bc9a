"""With bucketed groups a compiled step is one graph, which serves many masks."""

from __future__ import annotations

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.testing import CompileCounterWithBackend

from triptych.mim import DecoderSettings, GreenMIM, random_unit_mask


@pytest.fixture
def model():
    torch._dynamo.reset()
    torch.manual_seed(0)
    backbone = SwinTransformer(
        img_size=112, patch_size=4, embed_dim=16, depths=(2, 1), num_heads=(1, 2), window_size=7,
        num_classes=0, drop_path_rate=0.0,
    )  # fmt: skip
    yield GreenMIM(backbone, DecoderSettings(16, 1, 2), grouping="bucketed")
    torch._dynamo.reset()


def step(run, model: GreenMIM, images: Tensor, mask: Tensor) -> list[Tensor]:
    loss = run(images, mask, model.plan(mask)).loss
    return [loss, *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("per_sample", [False, True])
def test_one_graph_without_breaks_serves_every_mask(model, per_sample):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 112, 112, generator=generator)
    masks = [
        random_unit_mask(196, 0.75, 2, generator=generator, per_sample=per_sample) for _ in range(4)
    ]
    counter = CompileCounterWithBackend(aot_eager)
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for mask in masks:
        ours, expected = (step(run, model, images, mask) for run in (compiled, model))
        for one, other in zip(ours, expected, strict=True):
            if other is None:
                assert one is None
                continue
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    # With a mask for each image the number of rows may cross a bucket once.
    assert counter.frame_count <= (2 if per_sample else 1)
