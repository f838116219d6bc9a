"""The Triton kernels on a CUDA device, through DynamicTokenNorm; values against float64."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from triptych.norms import DynamicTokenNorm
from triptych.norms.kernels import fused

_place = Path(__file__).with_name("problems.py")
_spec = importlib.util.spec_from_file_location("dtn_problems", _place)
problems = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(problems)

REFERENCE = Path(__file__).parents[2] / "reference" / "dtn"
OFFICIAL = [path for path in sorted(REFERENCE.glob("dtn_*.npz")) if "_pool" not in path.stem]
FORMS = [("released", "mixed"), ("released", "token"), ("paper", "mixed"), ("paper", "token")]
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("device", "only_fused")]


@pytest.fixture
def device():
    if fused.longest_side("cuda") == 0 or not torch.cuda.is_available():
        pytest.skip("no CUDA device for the kernels")
    return torch.device("cuda")


def on_device(norm, x, visible=None, seed=3):
    """As ``problems.results``, with everything on the device and back on the host at the end."""
    norm.cuda().zero_grad()
    leaf = x.detach().cuda().requires_grad_()
    y = norm(leaf, None if visible is None else visible.cuda())
    y.backward(problems.make_tokens(*y.shape, seed=seed).to(y))
    names = ["y", "x"] + [name for name, _ in norm.named_parameters()]
    values = [y.detach(), leaf.grad] + [p.grad.clone() for p in norm.parameters()]
    norm.cpu()
    return {name: value.cpu() for name, value in zip(names, values, strict=True)}


@pytest.mark.parametrize("path", OFFICIAL, ids=lambda path: path.stem)
def test_official_values_and_gradients(path):
    with np.load(path) as file:
        data = {key: torch.from_numpy(file[key]) for key in file.files if key != "config"}
        config = json.loads(str(file["config"]))
    mean = "token" if config["only_var"] else "mixed"
    norm = DynamicTokenNorm(config["C"], config["heads"], tuple(config["grid"]), mean=mean)
    norm.load_state_dict({k[6:]: v for k, v in data.items() if k.startswith("param/")})
    norm.cuda()
    x = data["x"].cuda().requires_grad_()
    y = norm(x)
    y.backward(data["gy"].cuda())
    pairs = {"f64/y": y.detach(), "f64/gx": x.grad}
    pairs |= {f"f64/grad/{name}": value.grad for name, value in norm.named_parameters()}
    for key, got in pairs.items():
        error = (got.cpu().double() - data[key]).abs().max() / data[key].abs().max()
        assert error <= 2e-4, key


@pytest.mark.parametrize(("form", "mean"), FORMS)
@pytest.mark.parametrize("grid", [(14, 14), (7, 9), (28, 20), (56, 56), (64, 64), (1, 60)])
def test_values_and_gradients(grid, form, mean):
    norm = problems.make_norm(72, 3, grid, form=form, mean=mean, prefix_tokens=1)
    x = problems.make_tokens(3, 1 + grid[0] * grid[1], 72)
    problems.check(on_device(norm, x), problems.exact(norm, x), 5e-5)


@pytest.mark.parametrize(("form", "mean"), FORMS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("sets", [1, 3])
@pytest.mark.parametrize("grid", [(14, 14), (9, 33)])
def test_hidden_tokens(grid, sets, packed, form, mean):
    norm = problems.make_norm(48, 3, grid, form=form, mean=mean, prefix_tokens=2)
    count = grid[0] * grid[1]
    visible = problems.make_visible(sets, count, count // 4)
    visible = visible[0] if sets == 1 else visible
    x = problems.make_tokens(3, 2 + (count // 4 if packed else count), 48)
    problems.check(on_device(norm, x, visible), problems.exact(norm, x, visible), 5e-5)


@pytest.mark.parametrize("weights", [(0.0, 0.0, -1.0), (60.0, -50.0, -1.0), (900.0, 0.0, -1.0)])
def test_far_sources_when_the_near_ones_are_hidden(weights):
    norm = problems.make_norm(24, 2, (14, 14))
    norm.pos_proj.weight.data.copy_(torch.tensor([weights, (-weights[0], *weights[1:])]))
    visible = torch.zeros(14, 14, dtype=torch.bool)
    visible[:3, :2] = visible[11:, 12:] = True
    x, visible = problems.make_tokens(2, 12, 24), visible.flatten()
    problems.check(on_device(norm, x, visible), problems.exact(norm, x, visible), 1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_a_common_offset_costs_little(masked):
    norm = problems.make_norm(24, 3, (7, 9))
    visible = problems.make_visible(2, 63, 30) if masked else None
    x = problems.make_tokens(2, 63, 24) + 50
    problems.check(on_device(norm, x, visible), problems.exact(norm, x, visible), 1e-4)


def test_what_hidden_tokens_hold_reaches_nothing():
    norm = problems.make_norm(24, 2, (5, 6), prefix_tokens=1)
    visible = problems.make_visible(2, 30, 12)
    x = problems.make_tokens(2, 31, 24)
    hidden = torch.nn.functional.pad(~visible, (1, 0))[..., None]
    want = on_device(norm, x, visible)
    got = on_device(norm, x.masked_fill(hidden, torch.nan), visible)
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert (want["y"].masked_select(hidden) == 0).all()
    assert (want["x"].masked_select(hidden) == 0).all()


@pytest.mark.parametrize("masked", [False, True])
def test_repetition_changes_no_bit(masked):
    norm = problems.make_norm(96, 3, (14, 14))
    visible = problems.make_visible(64, 196, 60) if masked else None
    x = problems.make_tokens(64, 196, 96)
    want = on_device(norm, x, visible)
    for _ in range(3):
        got = on_device(norm, x, visible)
        assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_low_precision_tokens(device, dtype):
    norm = problems.make_norm(48, 3, (14, 14)).to(device)
    x = problems.make_tokens(2, 196, 48).to(device, dtype)
    with torch.autocast("cuda", dtype):
        y = norm(x.requires_grad_())
    y.backward(torch.ones_like(y))
    want = norm.reference(x.detach().float())
    assert (y.dtype, x.grad.dtype) == (dtype, dtype)
    assert all(value.grad.dtype == torch.float32 for value in norm.parameters())
    torch.testing.assert_close(y.float(), want, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("masked", [False, True])
def test_a_compiled_graph_has_no_break_and_the_same_numbers(device, masked):
    norm = problems.make_norm(48, 3, (8, 8), prefix_tokens=1).to(device)
    visible = problems.make_visible(2, 64, 16).to(device) if masked else None
    compiled = torch.compile(lambda x: 2 * norm(x, visible), fullgraph=True)
    results = []
    for call in (compiled, lambda x: 2 * norm(x, visible)):
        norm.zero_grad()
        x = problems.make_tokens(2, 65, 48).to(device).requires_grad_()
        y = call(x)
        y.square().sum().backward()
        results.append([y.detach(), x.grad, *(p.grad.clone() for p in norm.parameters())])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("held", ["all", "whole", "packed"])
def test_the_host_never_waits(device, held):
    norm = problems.make_norm(48, 3, (8, 8)).to(device)
    visible = None if held == "all" else problems.make_visible(2, 64, 16).to(device)
    x = problems.make_tokens(2, 16 if held == "packed" else 64, 48).to(device).requires_grad_()
    gradient = torch.ones_like(x)
    norm(x, visible).backward(gradient)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        norm(x, visible).backward(gradient)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_backward_keeps_x_and_a_few_numbers_a_token(device):
    heads, batch, count = 6, 4, 196
    norm = DynamicTokenNorm(96, heads, (14, 14)).to(device)
    x = problems.make_tokens(batch, count, 96).to(device).requires_grad_()
    own = {value.data_ptr() for value in (x, *norm.parameters())}
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        norm(x)
    extra = sum(size for place, size in kept.items() if place not in own)
    assert 0 < extra <= 4 * (heads + 4) * batch * count


def test_an_empty_batch(device):
    norm = DynamicTokenNorm(24, 2, (4, 5)).to(device)
    x = torch.zeros(0, 20, 24, device=device, requires_grad=True)
    norm(x).sum().backward()
    assert all((value.grad == 0).all() for value in norm.parameters())


def test_the_operator_is_declared_as_it_behaves(device):
    norm = DynamicTokenNorm(24, 2, (4, 5), prefix_tokens=1).to(device)
    parameters = (norm.weight, norm.bias, norm.mean_norm_weight, norm.var_norm_weight)
    x = torch.randn(2, 21, 24, device=device, requires_grad=True)
    geometry = (4, 5, 1, True, 1e-5)
    torch.library.opcheck(
        torch.ops.triptych.dtn, (x, *parameters, norm.pos_proj.weight, None, *geometry)
    )
