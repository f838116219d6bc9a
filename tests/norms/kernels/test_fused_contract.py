"""What the fused kernel promises beyond its values: memory, threads, precision, graphs."""

import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from triptych.norms import DynamicTokenNorm
from triptych.norms.kernels import cpu, fused

HEADER = Path(cpu.__file__).with_name("dtn_problem.h")


def tokens(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradients(norm, x, visible=None):
    norm.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = norm(x, visible)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(parameter.grad.clone() for parameter in norm.parameters())]


@pytest.mark.usefixtures("only_fused")
@pytest.mark.parametrize("batch", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("masked", [False, True])
def test_threads_and_repetition_change_no_bit(batch, masked, threads):
    norm = DynamicTokenNorm(48, 3, (9, 7), prefix_tokens=1)
    x = tokens(batch, 64, 48)
    visible = torch.rand(batch, 63, generator=torch.Generator().manual_seed(2)) < 0.5
    visible = visible if masked else None
    threads(1)
    want = gradients(norm, x, visible)
    for count in (1, 2, 3):
        threads(count)
        for got, value in zip(gradients(norm, x, visible), want, strict=True):
            assert torch.equal(got, value)


@pytest.mark.usefixtures("only_fused")
@pytest.mark.parametrize("form", ["released", "paper"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_keeps_x_and_a_few_numbers_a_token(form, dtype):
    heads, batch, count = 6, 4, 196
    norm = DynamicTokenNorm(96, heads, (14, 14), form=form)
    x = tokens(batch, count, 96).to(dtype).requires_grad_()
    own = {value.data_ptr() for value in (x, *norm.parameters())}
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = norm(x)
    assert y.requires_grad
    assert x.data_ptr() in kept
    extra = sum(size for place, size in kept.items() if place not in own)
    assert 0 < extra <= 4 * (heads + 4) * batch * count


@pytest.mark.usefixtures("only_fused")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_tokens_are_computed_in_float32(dtype):
    norm = DynamicTokenNorm(24, 2, (4, 4))
    x = tokens(2, 16, 24).to(dtype)
    got, want = gradients(norm, x), gradients(norm, x.float())
    assert (got[0].dtype, got[1].dtype) == (dtype, dtype)
    assert torch.equal(got[0], want[0].to(dtype))
    assert all(value.dtype == torch.float32 for value in got[2:])
    torch.testing.assert_close(got[1].float(), want[1], rtol=2e-2, atol=5e-2)


@pytest.mark.usefixtures("only_fused")
def test_strided_tokens_and_gradients():
    norm = DynamicTokenNorm(24, 2, (4, 5))
    x = tokens(2, 24, 4, 5)
    got = gradients(norm, x.permute(0, 2, 3, 1))
    want = gradients(norm, x.permute(0, 2, 3, 1).contiguous())
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    leaf = want[1].clone().requires_grad_()
    norm(leaf).sum().backward()  # its gradient is one number, expanded
    again = want[1].clone().requires_grad_()
    norm(again).backward(torch.ones_like(leaf))
    assert torch.equal(leaf.grad, again.grad)


@pytest.mark.usefixtures("only_fused")
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dim", [16, 39, 48])
def test_tokens_are_read_however_they_lie(batch, count, masked, dim, threads):
    """Channel by channel, as a convolution leaves them, or a part of a wider tensor: no bit less"""
    norm = DynamicTokenNorm(dim, dim // 13 if dim == 39 else 2, (5, 7), prefix_tokens=1)
    by_channel = tokens(batch, dim, 36)
    visible = (torch.arange(35) % 3 > 0) if masked else None
    wide = torch.nn.functional.pad(by_channel.mT, (5, 3, 2, 1))
    part, apart = wide[:, 2:-1, 5:-3], torch.stack((by_channel.mT, by_channel.mT), 3)[..., 0]
    assert 1 not in apart.stride()[1:]
    threads(count)
    parameters = (norm.weight, norm.bias, norm.mean_norm_weight, norm.var_norm_weight)
    rest = (*parameters, norm.pos_proj.weight, visible, cpu.Geometry(5, 7, 1, True, 1e-5))
    visible = None if visible is None else visible[None]
    want = results_of(by_channel.mT.contiguous(), rest, visible)
    for x in (by_channel.mT, part, apart):
        got = results_of(x, rest, visible)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def results_of(x, rest, visible):
    """y and all gradients; ``x`` keeps its strides."""
    x = x.detach().requires_grad_()
    y = fused.normalize(x, rest[:5], visible, rest[6])
    return y, *torch.autograd.grad(y.square().sum(), (x, *rest[:5]))


@pytest.mark.usefixtures("only_fused")
@pytest.mark.parametrize("mean", ["mixed", "token"])
def test_a_compiled_graph_has_no_break_and_the_same_numbers(mean):
    norm = DynamicTokenNorm(24, 2, (4, 5), prefix_tokens=1, mean=mean)
    compiled = torch.compile(lambda x: 2 * norm(x), fullgraph=True, backend="aot_eager")
    x = tokens(2, 21, 24).requires_grad_()
    y = compiled(x)
    y.square().sum().backward()
    got = [y.detach() / 2, x.grad / 4, *(p.grad / 4 for p in norm.parameters())]
    want = gradients(norm, x)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


# torch looks at .grad of an intermediate where a graph breaks, and warns of itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_a_compiled_graph_with_hidden_tokens_gives_the_same():
    norm = DynamicTokenNorm(24, 2, (4, 5))
    visible = torch.arange(20) % 3 > 0
    x = tokens(2, 20, 24)
    compiled = torch.compile(norm, backend="aot_eager")
    torch.testing.assert_close(compiled(x, visible), norm(x, visible), rtol=1e-5, atol=1e-5)


# torch looks at .grad of an intermediate where a graph breaks, and warns of itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_the_operator_is_declared_as_it_behaves():
    norm = DynamicTokenNorm(24, 2, (4, 5), prefix_tokens=1)
    parameters = (norm.weight, norm.bias, norm.mean_norm_weight, norm.var_norm_weight)
    geometry = (4, 5, 1, True, 1e-5)
    x = tokens(2, 21, 24).requires_grad_()
    torch.library.opcheck(
        torch.ops.triptych.dtn, (x, *parameters, norm.pos_proj.weight, None, *geometry)
    )


def test_functional_transforms_take_the_torch_path():
    norm = DynamicTokenNorm(24, 2, (4, 5))
    x = tokens(2, 20, 24)
    by_function = torch.func.grad(
        lambda p: torch.func.functional_call(norm, p, (x,)).square().sum()
    )(dict(norm.named_parameters()))
    want = gradients(norm, x)[2:]
    for got, value in zip(by_function.values(), want, strict=True):
        torch.testing.assert_close(got, value, rtol=1e-4, atol=1e-4)


def test_second_derivatives_are_refused_and_the_reference_has_them():
    norm = DynamicTokenNorm(24, 2, (4, 5))
    x = tokens(1, 20, 24).requires_grad_()
    sentence = (
        "the fused DynamicTokenNorm has no second derivative; DynamicTokenNorm.reference has, "
        "and so has a float64 module"
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(sentence)}$"):
        torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)
    (first,) = torch.autograd.grad(norm.reference(x).square().sum(), x, create_graph=True)
    first.square().sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.usefixtures("only_fused")
def test_a_frozen_norm_and_no_gradient():
    norm = DynamicTokenNorm(24, 2, (4, 5)).requires_grad_(False)
    x = tokens(2, 20, 24)
    leaf = x.clone().requires_grad_()
    norm(leaf).square().sum().backward()
    assert torch.equal(leaf.grad, gradients(norm.requires_grad_(True), x)[1])
    with torch.no_grad():
        assert not norm(x).requires_grad


@pytest.mark.usefixtures("only_fused")
def test_an_empty_batch():
    norm = DynamicTokenNorm(24, 2, (4, 5))
    y, x_gradient, *rest = gradients(norm, torch.zeros(0, 20, 24))
    assert y.shape == x_gradient.shape == (0, 20, 24)
    assert all((gradient == 0).all() for gradient in rest)


def test_flops_count_as_on_the_torch_path():
    norm = DynamicTokenNorm(24, 2, (4, 5))
    counts = []
    for call in (norm, norm.reference):
        with FlopCounterMode(display=False) as mode:
            call(tokens(3, 20, 24))
        counts.append(mode.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_the_struct_is_its_twin_in_c():
    text = HEADER.read_text()
    body = text[text.index("typedef struct {") : text.index("} Problem;")]
    body = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
    lines = re.findall(r"(?:const )?(float|uint8_t|int|long) ([^;{]+);", body)
    names = [name.strip(" *") for _, line in lines for name in line.split(",")]
    assert names == [name for name, *_ in cpu.Problem._fields_]


def test_kernel_is_left_where_it_would_lose_digits_or_memory(monkeypatch):
    def refuse(*_):
        raise AssertionError("the kernel was taken")

    monkeypatch.setattr(fused, "normalize", refuse)
    visible = torch.arange(20) % 2 > 0
    far = DynamicTokenNorm(24, 2, (4, 5))
    far.pos_proj.weight.data.copy_(torch.tensor([[900.0, 0.0, -1.0]] * 2))
    assert far(tokens(1, 20, 24), visible).isfinite().all()
    long = DynamicTokenNorm(8, 2, cpu.LONGEST_SIDE + 1)
    assert long(tokens(1, long.grid.count, 8)).isfinite().all()
    pooled = DynamicTokenNorm(8, 2, (4, 4), pool_to=2)
    assert pooled(tokens(1, 16, 8)).isfinite().all()
