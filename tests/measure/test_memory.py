"""Peak memory of a training step."""

import re

import pytest
import torch
from torch import nn

from triptych.measure import Candidate, can_measure_peak, peak_memory
from triptych.measure import memory as memory_module

CPU = torch.device("cpu")
needs_peak = pytest.mark.skipif(not can_measure_peak(CPU), reason="needs Linux with glibc")


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))


def candidate(mib, device=CPU):
    """A step that holds two tensors of ``mib`` MiB at a time.

    Forward: the product and its exponential. Backward: the exponential and the gradient of its
    input; then that gradient and its product with the batch.
    """
    numbers = mib * 2**18
    return Candidate(
        Scale().to(device),
        lambda: torch.full((numbers,), 0.5, device=device),
        1,
        lambda model, x: (x * model.weight).exp().sum(),
        lambda model, x: x * model.weight,
    )


@needs_peak
@pytest.mark.parametrize("mib", [8, 24, 48])
def test_size_and_repeatability(mib):
    values = [peak_memory(candidate(mib)) for _ in range(3)]
    assert values == pytest.approx([2 * mib] * 3, abs=1.5)


@needs_peak
def test_what_the_process_did_before_does_not_matter():
    def layers():
        model = nn.Sequential(*[nn.Sequential(nn.Linear(256, 256), nn.GELU()) for _ in range(6)])
        return Candidate(
            model,
            lambda: torch.ones(2000, 256),
            2000,
            lambda m, x: m(x).square().mean(),
            lambda m, x: m(x),
        )

    before = peak_memory(layers())
    # Pieces too small to be mapped by themselves leave gaps in the heap.
    pieces = [torch.ones(2**19 + 1000 * number) for number in range(100)]
    kept = pieces[::7]
    del pieces
    assert peak_memory(layers()) == pytest.approx(before, rel=0.05)
    assert len(kept) == 15


@needs_peak
def test_error_of_the_loss_is_passed_on():
    def fail(model, batch):
        raise ArithmeticError("as expected")

    failing = Candidate(Scale(), lambda: torch.ones(2), 2, fail, fail)
    with pytest.raises(ArithmeticError, match=r"^as expected$"):
        peak_memory(failing)


@needs_peak
def test_optimizer_state_and_gradients_count():
    def chosen(optimizer):
        model = nn.Linear(2048, 2048, bias=False)
        return Candidate(
            model,
            lambda: torch.ones(1, 2048),
            1,
            lambda m, x: m(x).sum(),
            lambda m, x: m(x),
            optimizer,
        )

    weights = 16  # MiB
    plain = peak_memory(chosen(lambda p: torch.optim.SGD(p, lr=0.1)))
    adam = peak_memory(chosen(lambda p: torch.optim.AdamW(p, lr=0.1, foreach=False)))
    assert plain == pytest.approx(weights, abs=1.5)
    assert adam - plain >= 2 * weights - 1.5


def test_platform_that_cannot_tell(monkeypatch, tmp_path):
    clear = tmp_path / "clear_refs"
    monkeypatch.setattr(memory_module, "_CLEAR", clear)
    assert not can_measure_peak(CPU)
    message = (
        f"peak memory on cpu cannot be measured here; it needs CUDA, or Linux with glibc and a "
        f"writable {clear}"
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        peak_memory(candidate(1))


@pytest.mark.gpu
def test_cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    value = peak_memory(candidate(24, torch.device("cuda")))
    assert value == pytest.approx(48, abs=1)
    assert peak_memory(candidate(24, torch.device("cuda"))) == value
