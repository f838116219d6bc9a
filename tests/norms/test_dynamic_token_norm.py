"""DynamicTokenNorm against the official code's outputs and gradients, and loops for the rest."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from triptych.norms import DynamicTokenNorm

REFERENCE = Path(__file__).parents[1] / "reference" / "dtn"
OFFICIAL = sorted(path.stem for path in REFERENCE.glob("dtn_*.npz"))
EXTENSIONS = sorted(path.stem for path in REFERENCE.glob("ext_*.npz"))

# (y absolute, gx and parameter gradients relative to the largest reference entry)
TOLERANCE = {torch.float64: (1e-10, 1e-10, 1e-10), torch.float32: (2e-5, 5e-6, 2e-4)}
OFFSET_TOLERANCE = {torch.float64: (1e-9, 1e-9, 1e-9), torch.float32: (1e-4, 1e-4, 1e-4)}


def load(name):
    with np.load(REFERENCE / f"{name}.npz") as file:
        data = {key: file[key] for key in file.files}
    return json.loads(str(data.pop("config"))), data


def make(config, data, dtype):
    sequence = config.get("kind") == "seq1d"
    norm = DynamicTokenNorm(
        config["C"],
        config["heads"],
        config["grid"][1] if sequence else tuple(config["grid"]),
        form="paper" if config.get("mode") == "paper" else "released",
        mean="token" if config["only_var"] else "mixed",
        pool_to=14 if config.get("pool", 1) > 1 else None,
        prefix_tokens=int(config.get("cls", False)),
    )
    state = {
        key.removeprefix("param/"): torch.from_numpy(value)
        for key, value in data.items()
        if key.startswith("param/")
    }
    norm.load_state_dict(state, strict=True)
    return norm.to(dtype)


def relative_error(got, want):
    return np.abs(got.double().numpy() - want).max() / np.abs(want).max()


def test_every_reference_file_is_there():
    assert len(OFFICIAL) == 11
    assert len(EXTENSIONS) == 5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("name", OFFICIAL)
def test_official_values_and_gradients(name, dtype):
    config, data = load(name)
    tolerance = (OFFSET_TOLERANCE if config["input"] == "offset" else TOLERANCE)[dtype]
    norm = make(config, data, dtype)
    x = torch.from_numpy(data["x"]).to(dtype).requires_grad_()
    y = norm(x)
    assert y.dtype == dtype
    y.backward(torch.from_numpy(data["gy"]).to(dtype))
    assert np.abs(y.detach().double().numpy() - data["f64/y"]).max() <= tolerance[0]
    assert relative_error(x.grad, data["f64/gx"]) <= tolerance[1]
    for parameter, value in norm.named_parameters():
        want = data[f"f64/grad/{parameter}"]
        assert relative_error(value.grad, want) <= tolerance[2], parameter


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("name", EXTENSIONS)
def test_extension_values(name, dtype):
    config, data = load(name)
    visible = torch.from_numpy(data["mask"]) if "mask" in data else None
    with torch.no_grad():
        y = make(config, data, dtype)(torch.from_numpy(data["x"]).to(dtype), visible)
    error = np.abs(y.double().numpy() - data["y64"])
    assert error.max() <= TOLERANCE[dtype][0]


def test_visible_tokens_alone_give_what_the_whole_grid_gives():
    config, data = load("ext_masked_8x8")
    norm = make(config, data, torch.float64)
    x = torch.from_numpy(data["x"]).double()
    for sample, mask in enumerate(torch.from_numpy(data["mask"])):
        with torch.no_grad():
            y = norm(x[sample : sample + 1, mask], mask)
        want = torch.from_numpy(data["y64"])[sample : sample + 1, mask]
        torch.testing.assert_close(y, want, rtol=0, atol=1e-10)
