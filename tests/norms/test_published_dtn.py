"""The baseline of the benchmarks is what the official code computes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["dtn_14x14_h4_plain", "dtn_8x8_h1_zero", "dtn_28x28_nopool_h2"])
def test_official_values_and_gradients(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.published_dtn import PublishedDTN

    with np.load(ROOT / "tests" / "reference" / "dtn" / f"{name}.npz") as file:
        data = {key: file[key] for key in file.files}
    config = json.loads(str(data["config"]))
    norm = PublishedDTN(config["C"], config["heads"], tuple(config["grid"])).double()
    names = [key for key in data if key.startswith("param/")]
    norm.load_state_dict({key.removeprefix("param/"): torch.tensor(data[key]) for key in names})
    x = torch.from_numpy(data["x"]).double().requires_grad_()
    y = norm(x)
    y.backward(torch.from_numpy(data["gy"]).double())
    assert np.abs(y.detach().numpy() - data["f64/y"]).max() <= 1e-10
    assert np.abs(x.grad.numpy() - data["f64/gx"]).max() <= 1e-10
    for key, parameter in norm.named_parameters():
        want = data[f"f64/grad/{key}"]
        assert np.abs(parameter.grad.numpy() - want).max() <= 1e-9 * max(1, np.abs(want).max())
