"""The rival normalizers against the official ones, and against their definitions."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from triptych.norms import BatchNorm, DyT, GroupNorm, InstanceNorm, RMSNorm, ScaleNorm

REFERENCE = Path(__file__).parents[1] / "reference" / "dtn" / "other_norms_s401.npz"
DIM, HEADS = 24, 4
OFFICIAL = {
    "batch": lambda: BatchNorm(DIM),
    "insnorm": lambda: InstanceNorm(DIM),
    "gnorm": lambda: GroupNorm(DIM, HEADS),
    "scale": lambda: ScaleNorm(DIM),
    "layer": lambda: torch.nn.LayerNorm(DIM, eps=1e-5),
}
EVERY = [*OFFICIAL.values(), lambda: RMSNorm(DIM), lambda: DyT(DIM)]


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_values_and_gradients(name):
    with np.load(REFERENCE) as data:
        reference = {key: torch.from_numpy(data[key]) for key in data.files if key != "config"}
    own_name = {"scale": "weight"} if name == "scale" else {}
    norm = OFFICIAL[name]().double()
    parameters = dict(norm.named_parameters())
    official = [key.split("/")[2] for key in reference if key.startswith(f"{name}/param/")]
    assert len(official) == len(parameters)
    with torch.no_grad():
        for key in official:
            parameters[own_name.get(key, key)].copy_(reference[f"{name}/param/{key}"])
    x = reference["x"].double().requires_grad_()
    y = norm(x)
    y.backward(reference["gy"].double())
    torch.testing.assert_close(y.detach(), reference[f"{name}/f64/y"], rtol=0, atol=1e-10)
    torch.testing.assert_close(x.grad, reference[f"{name}/f64/gx"], rtol=1e-10, atol=1e-10)
    for key in official:
        got = parameters[own_name.get(key, key)].grad
        torch.testing.assert_close(got, reference[f"{name}/f64/grad/{key}"], rtol=1e-10, atol=1e-10)


def test_rms_norm_and_dyt_definitions():
    x = torch.randn(2, 5, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rms, dyt = RMSNorm(DIM).double(), DyT(DIM).double()
    torch.testing.assert_close(rms(x), x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt())
    torch.testing.assert_close(dyt(x), torch.tanh(0.5 * x))
    assert {name for name, _ in dyt.named_parameters()} == {"alpha", "weight", "bias"}
    assert {name for name, _ in rms.named_parameters()} == {"weight"}


@pytest.mark.parametrize("make", EVERY)
def test_a_map_gives_what_its_tokens_give(make):
    norm = make()
    x = torch.randn(2, 3, 4, DIM, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(norm(x).flatten(1, 2), norm(x.flatten(1, 2)))
    assert norm(x).is_contiguous()


@pytest.mark.parametrize("make", EVERY)
def test_bfloat16_autocast_stays_finite_and_near(make):
    norm = make()
    x = torch.randn(2, 9, DIM, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = norm(x)
    torch.testing.assert_close(y.float(), norm(x), rtol=2e-2, atol=2e-2)


def test_batch_norm_uses_running_statistics_in_evaluation():
    norm = BatchNorm(DIM)
    x = 3 + 2 * torch.randn(8, 5, DIM, generator=torch.Generator().manual_seed(0))
    for _ in range(200):
        norm(x)
    norm.eval()
    alone = norm(x[:1])
    torch.testing.assert_close(alone, norm(x)[:1])
    want = (x - x.mean((0, 1))) / (x.var((0, 1)) + 1e-5).sqrt()
    torch.testing.assert_close(alone, want[:1], rtol=1e-4, atol=1e-4)


def test_scale_norm_starts_at_the_root_of_the_width_and_divides_zero_by_its_floor():
    norm = ScaleNorm(16)
    assert torch.equal(norm.weight, torch.full((16,), 4.0))
    x = torch.zeros(1, 2, 16, requires_grad=True)
    norm(x).sum().backward()
    assert torch.equal(norm(x), torch.zeros(1, 2, 16))
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: InstanceNorm(8)(torch.zeros(2, 1, 8)),
            "InstanceNorm needs at least 2 tokens for a variance, got 1",
        ),
        (
            lambda: GroupNorm(10, 4),
            "dim=10 does not split into num_heads=4 groups: dim must be a multiple of num_heads",
        ),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        call()
