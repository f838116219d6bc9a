"""What DynamicTokenNorm promises beyond its values: layouts, precision, masks, state, refusals."""

import copy
import re

import pytest
import torch
from torch.nn import functional as F

from triptych.norms import DynamicTokenNorm, PositionWeights

EVERY_FORM = [("released", "mixed"), ("released", "token"), ("paper", "mixed"), ("paper", "token")]


def randomized(norm, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return norm


def tokens(*shape, seed=1, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(("form", "mean"), EVERY_FORM)
@pytest.mark.parametrize("case", ["whole", "prefix", "pooled", "masked", "packed", "underflow"])
def test_gradcheck(form, mean, case):
    grid = (4, 2) if case == "pooled" else (3, 2)
    norm = DynamicTokenNorm(
        4,
        2,
        grid,
        form=form,
        mean=mean,
        prefix_tokens=int(case == "prefix"),
        pool_to=2 if case == "pooled" else None,
    )
    randomized(norm.double())
    visible = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 1, 1, 1, 1, 0]]) > 0
    if case == "underflow":
        norm.pos_proj.weight.data[:, 2] = 900.0
        visible = torch.tensor([1, 1, 0, 1, 0, 0]) > 0
    count = 4 if case == "packed" else norm.grid.count + norm.prefix_tokens
    x = tokens(2, count, 4, dtype=torch.float64).requires_grad_()
    mask = visible if case in ("masked", "packed", "underflow") else None
    names, values = zip(*norm.named_parameters(), strict=True)

    def call(x, *values):
        named = dict(zip(names, values, strict=True))
        return torch.func.functional_call(norm, named, (x, mask))

    assert torch.autograd.gradcheck(call, (x, *values))


def test_a_map_gives_what_its_tokens_give():
    norm = randomized(DynamicTokenNorm(8, 2, (3, 5)))
    x = tokens(2, 3, 5, 8)
    assert torch.equal(norm(x), norm(x.flatten(1, 2)).view(x.shape))
    channels_first = x.permute(0, 3, 1, 2).contiguous()
    torch.testing.assert_close(norm(channels_first.permute(0, 2, 3, 1)), norm(x))


def test_paper_form_with_ratio_one_is_layer_norm():
    norm = randomized(DynamicTokenNorm(12, 3, (4, 4), form="paper", prefix_tokens=1))
    norm.mean_norm_weight.data.fill_(100.0)
    x = tokens(2, 17, 12)
    want = F.layer_norm(x, (12,), norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(norm(x), want, rtol=1e-5, atol=1e-5)


def test_paper_form_with_ratio_zero_and_flat_weights_is_instance_norm():
    norm = DynamicTokenNorm(12, 3, (4, 5), form="paper")
    norm.mean_norm_weight.data.fill_(-100.0)
    norm.pos_proj.weight.data.zero_()
    x = tokens(2, 20, 12) + 3
    want = F.instance_norm(x.mT, eps=norm.eps).mT
    torch.testing.assert_close(norm(x), want, rtol=1e-5, atol=1e-5)


def test_released_form_of_one_head_with_ratio_one_is_unbiased_layer_norm_of_scaled_tokens():
    norm = DynamicTokenNorm(12, 1, (4, 5)).double()
    norm.mean_norm_weight.data.fill_(100.0)
    norm.var_norm_weight.data.fill_(100.0)
    x = tokens(2, 20, 12, dtype=torch.float64)
    u = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    want = (u - u.mean(-1, keepdim=True)) / (u.var(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("form", "mean"), EVERY_FORM)
def test_autocast_changes_nothing_and_smooth_tokens_stay_finite(form, mean, dtype):
    norm = DynamicTokenNorm(16, 4, (7, 7), form=form, mean=mean)
    for name in ("mean_norm_weight", "var_norm_weight"):
        if getattr(norm, name) is not None:
            getattr(norm, name).data.fill_(-50.0)
    base = tokens(2, 1, 16)
    for x in (base.expand(2, 49, 16), base + 1e-3 * tokens(2, 49, 16, seed=4), tokens(2, 49, 16)):
        with torch.autocast("cpu", dtype=dtype):
            y = norm(x)
            low = norm(x.to(dtype))
        assert y.dtype == torch.float32
        assert torch.equal(y, norm(x))
        assert low.dtype == dtype
        assert low.isfinite().all()


def test_identical_tokens_have_no_inter_token_part():
    norm = DynamicTokenNorm(8, 2, (4, 4))
    norm.mean_norm_weight.data.fill_(-100.0)
    norm.var_norm_weight.data.fill_(-100.0)
    x = tokens(1, 1, 8).expand(1, 16, 8).contiguous().requires_grad_()
    y = norm(x)
    torch.testing.assert_close(y, torch.zeros_like(y), rtol=0, atol=1e-3)
    y.square().sum().backward()
    assert x.grad.isfinite().all()


def test_low_precision_module_computes_in_float32():
    norm = randomized(DynamicTokenNorm(8, 2, (4, 4))).bfloat16()
    x = tokens(2, 16, 8).bfloat16()
    want = copy.deepcopy(norm).float()(x.float())
    assert torch.equal(norm(x), want.bfloat16())


def test_float64_tokens_are_normalised_in_float64_with_float32_parameters():
    norm = randomized(DynamicTokenNorm(8, 2, (4, 4)))
    x = tokens(2, 16, 8, dtype=torch.float64)
    assert torch.equal(norm(x), copy.deepcopy(norm).double()(x))


@pytest.mark.parametrize(("form", "mean"), EVERY_FORM)
def test_state_dict_round_trip(form, mean):
    norm = randomized(DynamicTokenNorm(8, 2, (4, 4), form=form, mean=mean))
    other = DynamicTokenNorm(8, 2, (4, 4), form=form, mean=mean)
    other.load_state_dict(norm.state_dict())
    x = tokens(2, 16, 8)
    assert torch.equal(other(x), norm(x))


@pytest.mark.parametrize(
    ("form", "mean", "extra"),
    [
        ("released", "mixed", {"mean_norm_weight", "var_norm_weight"}),
        ("released", "token", {"var_norm_weight"}),
        ("paper", "mixed", {"mean_norm_weight"}),
        ("paper", "token", {"var_norm_weight"}),
    ],
)
def test_parameters_have_the_official_names(form, mean, extra):
    norm = DynamicTokenNorm(8, 2, (4, 4), form=form, mean=mean)
    assert set(norm.state_dict()) == {"weight", "bias", "pos_proj.weight"} | extra


def test_loading_an_official_state_leaves_it_unchanged_and_refuses_what_is_foreign():
    state = {
        "weight": torch.ones(8),
        "bias": torch.zeros(8),
        "mean_norm_weight": torch.zeros(2),
        "var_norm_weight": torch.zeros(2),
        "pos_proj.weight": torch.zeros(2, 3),
        "pos_proj.bias": torch.ones(2),
    }
    before = set(state)
    DynamicTokenNorm(8, 2, (4, 4)).load_state_dict(state)
    DynamicTokenNorm(8, 2, (4, 4), form="paper").load_state_dict(state)
    assert set(state) == before
    with pytest.raises(RuntimeError, match=r"Unexpected key.*running_mean"):
        DynamicTokenNorm(8, 2, (4, 4)).load_state_dict(state | {"running_mean": torch.zeros(8)})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*mean_norm_weight"):
        DynamicTokenNorm(8, 2, (4, 4), mean="token").load_state_dict(state)


def test_every_parameter_gets_a_gradient():
    for form, mean in EVERY_FORM:
        norm = DynamicTokenNorm(8, 2, (4, 4), form=form, mean=mean)
        norm(tokens(2, 16, 8)).square().sum().backward()
        assert all(parameter.grad is not None for parameter in norm.parameters())


def test_position_weights_survive_a_backbones_own_initialization():
    norm = DynamicTokenNorm(8, 4, (4, 4))
    before = norm.pos_proj.weight.detach().clone()
    norm.apply(lambda m: torch.nn.init.zeros_(m.weight) if isinstance(m, torch.nn.Linear) else None)
    assert torch.equal(norm.pos_proj.weight, before)
    assert isinstance(norm.pos_proj, PositionWeights)


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        (
            (10, 4, (7, 7)),
            {},
            "dim=10 does not split into num_heads=4 heads: dim must be at least 2 and a multiple "
            "of num_heads",
        ),
        ((8, 2, (7, 7)), {"form": "code"}, "form must be 'released' or 'paper', got 'code'"),
        ((8, 2, (7, 7)), {"mean": "none"}, "mean must be 'mixed' or 'token', got 'none'"),
        (
            (8, 2, (7, 7)),
            {"init": "random"},
            "init must be 'locality' or 'released', got 'random'",
        ),
        ((8, 2, (7, 7)), {"prefix_tokens": -1}, "prefix_tokens must be 0 or more, got -1"),
        ((8, 2, (7, 7)), {"eps": 0.0}, "eps must be above 0, got 0.0"),
        ((8, 2, (7, 7)), {"pool_to": 0}, "pool_to must be at least 1 or None, got 0"),
        (
            (8, 2, (14, 20)),
            {"pool_to": 14},
            "pool_to=14 does not divide the sides of a 14x20 grid: a side above pool_to must be "
            "a multiple of it",
        ),
        ((8, 2, (0, 7)), {}, "a token grid needs sides of at least 1, got 0x7"),
        ((8, 2, (7, 7, 7)), {}, "a grid size is (height, width) or an int, got (7, 7, 7)"),
    ],
)
def test_construction_refuses(arguments, options, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        DynamicTokenNorm(*arguments, **options)


@pytest.mark.parametrize(
    ("shape", "visible", "sentence"),
    [
        ((2, 13, 6), None, "x must be (B, N, 8) or (B, H, W, 8), got (2, 13, 6)"),
        ((13, 8), None, "x must be (B, N, 8) or (B, H, W, 8), got (13, 8)"),
        (
            (2, 12, 8),
            None,
            "x holds 12 tokens, but a 3x4 grid with 1 prefix tokens has 13; if some are missing, "
            "say which are visible",
        ),
        (
            (2, 4, 3, 8),
            None,
            "x lies on a 4x3 grid, but the norm was made for a 3x4 grid with 1 prefix tokens",
        ),
        ((2, 13, 8), torch.ones(12), "visible must be bool, got torch.float32"),
        (
            (2, 13, 8),
            torch.ones(3, 12, dtype=torch.bool),
            "visible must have shape (12,) or (2, 12) for a 3x4 grid, got (3, 12)",
        ),
        (
            (2, 6, 8),
            torch.arange(12) < 4,
            "x holds 5 tokens of the grid, but visible marks 4 of 12",
        ),
    ],
)
def test_forward_refuses(shape, visible, sentence):
    norm = DynamicTokenNorm(8, 2, (3, 4), prefix_tokens=1)
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        norm(torch.zeros(shape), visible)
