"""Interleaving, ratios, and models that are left as they were."""

import random
import re

import numpy as np
import pytest
import torch
from torch import nn

from triptych.measure import Candidate, measure_interleaved, ratios, time_interleaved
from triptych.measure.candidate import preserved
from triptych.measure.timing import ratio, throughput


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Dropout(0.3), nn.ReLU(), nn.Linear(12, 3)
    )


def candidate(model, calls=None, name=""):
    def note(kind):
        if calls is not None:
            calls.append((kind, name, model.training))

    def loss(model, batch):
        note("train")
        return model(batch).square().mean()

    def infer(model, batch):
        note("inference")
        assert not torch.is_grad_enabled()
        return model(batch)

    return Candidate(model, lambda: torch.randn(4, 6), 4, loss, infer)


def test_order_is_turned_round_in_every_second_round():
    calls = []
    names = ["a", "b", "c"]
    result = time_interleaved(
        {name: candidate(network(), calls, name) for name in names}, 3, warmup=1
    )
    for kind, training in (("train", True), ("inference", False)):
        order = [name for k, name, _ in calls if k == kind]
        assert order == names + names[::-1] + names + names[::-1]
        assert {mode for k, _, mode in calls if k == kind} == {training}
    assert list(result) == names
    assert all(len(s.train) == len(s.inference) == 3 for s in result.values())
    assert all(second > 0 for s in result.values() for second in s.train + s.inference)


def test_slower_model_is_found_slower():
    large = nn.Sequential(nn.Linear(6, 2000), nn.Linear(2000, 2000), nn.Linear(2000, 3))
    costs = measure_interleaved({"small": candidate(network()), "large": candidate(large)}, 5)
    against = ratios(costs, "large")
    assert against["small"].train.median > 1.5
    assert against["small"].train.lower > 1
    assert against["large"].train.rounds == (1.0,) * 5
    assert costs["small"].train_throughput > costs["large"].train_throughput
    assert costs["large"].macs == 6 * 2000 + 2000 * 2000 + 2000 * 3
    assert costs["small"].parameters == costs["small"].trainable_parameters == 147


def snapshot(model):
    return {
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "rng": (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()),
    }


def assert_same(before, after):
    torch.testing.assert_close(after["state"], before["state"], rtol=0, atol=0)
    for one, other in zip(before["grads"], after["grads"], strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
    assert before["modes"] == after["modes"]
    assert torch.equal(before["rng"][0], after["rng"][0])
    assert before["rng"][1:] == after["rng"][1:]


@pytest.mark.parametrize("with_gradients", [True, False])
def test_everything_is_put_back(with_gradients):
    model = network()
    model[1].eval()
    if with_gradients:
        model(torch.randn(4, 6)).sum().backward()
    before = snapshot(model)
    measure_interleaved({"model": candidate(model)}, 2)
    assert_same(before, snapshot(model))


def test_everything_is_put_back_after_a_failure():
    model = network()

    def fail(model, batch):
        model(batch)
        np.random.rand()
        random.random()
        with torch.no_grad():
            model[0].weight.zero_()
        raise ArithmeticError

    before = snapshot(model)
    failing = Candidate(model, lambda: torch.randn(4, 6), 4, fail, lambda m, b: m(b))
    with pytest.raises(ArithmeticError):
        measure_interleaved({"model": failing}, 2)
    assert_same(before, snapshot(model))


def test_replaced_buffer_is_put_back():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(1), persistent=False)

    model = Counting()
    original = model.count
    with preserved(model):
        model.count.add_(5)
        model.count = model.count + 1
        model.register_buffer("more", torch.ones(1))
    assert model.count is original
    assert model.count.item() == 0
    assert not hasattr(model, "more")


def test_gradients_from_before_are_not_added_to():
    model = network()
    model(torch.randn(4, 6)).sum().backward()
    seen = []

    def loss(model, batch):
        seen.append(all(p.grad is None for p in model.parameters()))
        return model(batch).mean()

    time_interleaved(
        {"m": Candidate(model, lambda: torch.randn(4, 6), 4, loss, lambda m, b: m(b))}, 2
    )
    assert seen == [True] * 4


def test_throughput_is_that_of_the_median_step():
    assert throughput((0.5, 10.0, 0.25), 8) == 16


def test_ratio_by_hand():
    result = ratio((1.0, 2.0, 4.0, 1.0, 1.0), 2, (2.0, 2.0, 2.0, 2.0, 2.0), 1)
    assert result.rounds == (4.0, 2.0, 1.0, 4.0, 4.0)
    assert (result.lower, result.median, result.upper) == (2.0, 4.0, 4.0)


def test_bad_arguments():
    for arguments, message in [
        (({}, 3), "there is no candidate to measure"),
        (({"m": candidate(network())}, 0), "rounds must be at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            measure_interleaved(*arguments)
    with pytest.raises(ValueError, match=r"^warmup must be at least 0, got -1$"):
        measure_interleaved({"m": candidate(network())}, 1, warmup=-1)
    with pytest.raises(ValueError, match=r"^a ratio needs equally many rounds, got 1 and 2$"):
        ratio((1.0,), 1, (1.0, 1.0), 1)
    with pytest.raises(ValueError, match=r"^the baseline ln is none of dtn, rms$"):
        ratios({"dtn": None, "rms": None}, "ln")
