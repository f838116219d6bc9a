"""The fused CPU kernel against float64: references, random problems, hard inputs."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

_place = Path(__file__).with_name("problems.py")
_spec = importlib.util.spec_from_file_location("dtn_problems", _place)
problems = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(problems)

REFERENCE = Path(__file__).parents[2] / "reference" / "dtn"
FORMS = [("released", "mixed"), ("released", "token"), ("paper", "mixed"), ("paper", "token")]
pytestmark = pytest.mark.usefixtures("only_fused")


# Pooled statistics are not the kernel's.
OFFICIAL = [path for path in sorted(REFERENCE.glob("dtn_*.npz")) if "_pool" not in path.stem]


@pytest.mark.parametrize("path", OFFICIAL, ids=lambda path: path.stem)
def test_official_values_and_gradients(path):
    with np.load(path) as file:
        data = {key: file[key] for key in file.files}
    config = json.loads(str(data["config"]))
    assert config["pool"] == 1
    mean = "token" if config["only_var"] else "mixed"
    norm = problems.make_norm(config["C"], config["heads"], tuple(config["grid"]), mean=mean)
    state = {
        k.removeprefix("param/"): torch.from_numpy(v) for k, v in data.items() if "param/" in k
    }
    norm.load_state_dict(state)
    offset = config["input"] == "offset"
    x = torch.from_numpy(data["x"]).requires_grad_()
    y = norm(x)
    y.backward(torch.from_numpy(data["gy"]))
    assert np.abs(y.detach().numpy() - data["f64/y"]).max() <= (1e-4 if offset else 2e-5)
    gradients = {"f64/gx": (x.grad, 1e-4 if offset else 5e-6)}
    for name, parameter in norm.named_parameters():
        gradients[f"f64/grad/{name}"] = (parameter.grad, 1e-4 if offset else 2e-4)
    for key, (got, tolerance) in gradients.items():
        error = np.abs(got.double().numpy() - data[key]).max() / np.abs(data[key]).max()
        assert error <= tolerance, key


@st.composite
def cases(draw):
    heads = draw(st.integers(1, 5))
    features = draw(st.integers(3, 40))
    grid = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    form, mean = draw(st.sampled_from(FORMS))
    prefix = draw(st.integers(0, 2))
    seed = draw(st.integers(0, 2**16))
    norm = problems.make_norm(
        heads * features, heads, grid, seed, form=form, mean=mean, prefix_tokens=prefix
    )
    batch, count = draw(st.integers(1, 3)), grid[0] * grid[1]
    kept = draw(st.integers(1, count))
    held = draw(st.sampled_from(["all", "whole", "packed"]))
    visible = None
    if held != "all":
        visible = problems.make_visible(draw(st.sampled_from([1, batch])), count, kept, seed)
        visible = visible[0] if len(visible) == 1 else visible
    tokens = prefix + (kept if held == "packed" else count)
    return norm, problems.make_tokens(batch, tokens, norm.dim, seed=seed), visible


@settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(case=cases())
def test_values_and_gradients_of_random_problems(case):
    norm, x, visible = case
    got = problems.results(norm, norm, x, visible)
    # A variance of next to nothing magnifies rounding: the float32 path by operators is no better.
    plain = problems.results(norm, norm.reference, x, visible)
    want = problems.exact(norm, x, visible)
    for name, value in want.items():
        scale = value.abs().max().clamp_min(0.1)
        error = (got[name].double() - value).abs().max() / scale
        other = (plain[name].double() - value).abs().max() / scale
        assert error <= max(1e-4, 8 * float(other)), name


@pytest.mark.parametrize(("form", "mean"), FORMS)
@pytest.mark.parametrize("grid", [(56, 56), (30, 17), (1, 200)])
def test_cut_off_kernels_and_blocks_of_channels(form, mean, grid):
    norm = problems.make_norm(40, 1, grid, form=form, mean=mean)
    x = problems.make_tokens(1, grid[0] * grid[1], 40) * 1.7 + 0.3
    problems.check(problems.results(norm, norm, x), problems.exact(norm, x))


@pytest.mark.parametrize("weights", [(0.0, 0.0, -1.0), (5.0, -5.0, -1.0), (0.9, 0.6, 0.02)])
def test_far_sources_when_the_near_ones_are_hidden(weights):
    """Two ends of a grid are visible, and position weights that point away from the token."""
    norm = problems.make_norm(24, 2, (14, 14))
    norm.pos_proj.weight.data.copy_(torch.tensor([weights, (-weights[0], *weights[1:])]))
    visible = torch.zeros(14, 14, dtype=torch.bool)
    visible[:3, :2] = visible[11:, 12:] = True
    x = problems.make_tokens(2, 12, 24)
    visible = visible.flatten()
    problems.check(problems.results(norm, norm, x, visible), problems.exact(norm, x, visible), 1e-4)


def test_wide_heads_take_several_blocks():
    norm = problems.make_norm(300, 2, (4, 5))
    x = problems.make_tokens(2, 20, 300)
    problems.check(problems.results(norm, norm, x), problems.exact(norm, x))


@pytest.mark.parametrize(("form", "mean"), FORMS)
@pytest.mark.parametrize("masked", [False, True])
def test_a_common_offset_costs_little(form, mean, masked):
    norm = problems.make_norm(24, 3, (7, 9), form=form, mean=mean, prefix_tokens=1)
    x = problems.make_tokens(2, 64, 24) + 50
    visible = problems.make_visible(2, 63, 30) if masked else None
    problems.check(problems.results(norm, norm, x, visible), problems.exact(norm, x, visible), 1e-4)


@pytest.mark.parametrize(("form", "mean"), FORMS)
@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e-3])
def test_tiny_tokens(form, mean, scale):
    norm = problems.make_norm(20, 4, (5, 6), form=form, mean=mean)
    x = scale * problems.make_tokens(2, 30, 20)
    problems.check(problems.results(norm, norm, x), problems.exact(norm, x))


def test_constant_tokens_are_finite_and_right():
    norm = problems.make_norm(24, 2, (5, 6))
    x = problems.make_tokens(2, 1, 24).expand(2, 30, 24)
    problems.check(problems.results(norm, norm, x), problems.exact(norm, x), 1e-4)


def test_what_hidden_tokens_hold_reaches_nothing():
    norm = problems.make_norm(24, 2, (5, 6), prefix_tokens=1)
    visible = problems.make_visible(2, 30, 12)
    x = problems.make_tokens(2, 31, 24)
    hidden = torch.nn.functional.pad(~visible, (1, 0))[..., None]
    want = problems.results(norm, norm, x, visible)
    got = problems.results(norm, norm, x.masked_fill(hidden, torch.nan), visible)
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert (want["y"].masked_select(hidden) == 0).all()
    assert (want["x"].masked_select(hidden) == 0).all()


def test_not_a_number_is_not_hidden():
    norm = problems.make_norm(24, 2, (5, 6))
    x = problems.make_tokens(1, 30, 24)
    x[0, 3, 5] = torch.nan
    assert norm(x)[0, 3].isnan().any()


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=5),
    weights=st.tuples(st.floats(-0.5, 0.5), st.floats(-1.5, -0.05)),
    shared=st.booleans(),
    form=st.sampled_from(["released", "paper"]),
)
def test_padded_sequences(lengths, weights, shared, form):
    norm = problems.make_norm(20, 2, 90, form=form)
    with torch.no_grad():
        norm.pos_proj.weight[0, 0], norm.pos_proj.weight[0, 2] = weights
    visible = torch.arange(90) < torch.tensor(lengths)[:, None]
    if shared:
        visible = visible[0]
    x = problems.make_tokens(len(lengths), 90, 20)
    problems.check(problems.results(norm, norm, x, visible), problems.exact(norm, x, visible))
