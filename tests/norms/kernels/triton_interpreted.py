"""A process of its own: the Triton kernels in Triton's interpreter, on the CPU, against float64.

Prints, for each case, each result's error relative to its largest entry. Triton looks at
TRITON_INTERPRET when it is imported. At most four programs run: of more tiles, one takes several.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
REFERENCE = HERE.parents[1] / "reference" / "dtn"
# Grid, heads, features a head, then options; "held": which tokens x holds.
CASES = {
    "plain": ((3, 5), 2, 4, {"batch": 1}),
    "several_blocks_and_tiles": ((2, 2), 1, 40, {"batch": 3}),
    "paper_prefix": ((5, 2), 1, 6, {"form": "paper", "prefix_tokens": 2, "batch": 1}),
    "token_mean": ((2, 2), 3, 5, {"mean": "token", "prefix_tokens": 1, "batch": 1}),
    "paper_token_mean": ((2, 2), 2, 4, {"form": "paper", "mean": "token", "batch": 1}),
    "offset": ((3, 3), 1, 4, {"offset": 50.0, "batch": 1}),
    "more_than_sixteen_rows": ((18, 2), 1, 4, {"batch": 1}),
    "bfloat16": ((3, 3), 1, 4, {"dtype": torch.bfloat16, "batch": 1}),
    "sets_whole_grid": ((2, 3), 1, 4, {"held": "whole", "sets": 2, "prefix_tokens": 1}),
    "sets_packed": ((3, 2), 1, 4, {"held": "packed", "sets": 2, "prefix_tokens": 1}),
    "one_set_packed_paper": ((2, 3), 1, 4, {"held": "packed", "sets": 1, "form": "paper"}),
    "underflow": ((3, 3), 1, 4, {"held": "packed", "sets": 1, "far": True, "batch": 1}),
}


def patch_once() -> None:
    """The interpreter prepares the language anew at every call of a device function, which takes
    most of the time; once for each module is enough.
    """
    from triton.runtime import interpreter

    prepared: set[str] = set()

    def call(self, *args, **kwargs):
        if self.fn.__module__ not in prepared:
            interpreter._patch_lang(self.fn)
            prepared.add(self.fn.__module__)
        return self.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call


def load_problems():
    spec = importlib.util.spec_from_file_location("dtn_problems", HERE / "problems.py")
    problems = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(problems)
    return problems


def make_case(problems, name):
    """A norm, its tokens and which are visible."""
    grid, heads, features, options = CASES[name]
    options = dict(options)
    batch, held = options.pop("batch", 2), options.pop("held", None)
    sets, offset = options.pop("sets", 1), options.pop("offset", 0.0)
    dtype, far = options.pop("dtype", torch.float32), options.pop("far", False)
    norm = problems.make_norm(heads * features, heads, grid, **options)
    count = grid[0] * grid[1]
    kept = count // 2 if held else count
    visible = problems.make_visible(sets, count, kept) if held else None
    if visible is not None and sets == 1:
        visible = visible[0]
    if far:  # of all tokens but the two ends of the grid, which only see each other
        norm.pos_proj.weight.data.copy_(torch.tensor([[60.0, 55.0, -1.0]]))
        visible = torch.arange(count) % (count - 1) == 0
        kept = 2
    tokens = norm.prefix_tokens + (kept if held == "packed" else count)
    x = problems.make_tokens(batch, tokens, norm.dim) + offset
    return norm, x.to(dtype), visible


def by_kernels(norm, x, visible, y_gradient):
    """Results in the order and under the names of ``problems.results``."""
    from triptych.norms.kernels import triton_launch
    from triptych.norms.kernels.cpu import Geometry

    mean, variance = norm._logits()
    values = {"weight": norm.weight, "bias": norm.bias, "mean_logit": mean}
    values |= {"variance_logit": variance, "position": norm.pos_proj.weight}
    tensors = {key: None if value is None else value.detach() for key, value in values.items()}
    mask = None if visible is None else visible.reshape(-1, norm.grid.count)
    tensors |= {"x": x, "visible": mask}
    released = norm.form == "released"
    geometry = Geometry(norm.grid.height, norm.grid.width, norm.prefix_tokens, released, norm.eps)
    y, statistics = triton_launch.forward(tensors, geometry)
    tensors |= {"statistics": statistics, "y_gradient": y_gradient}
    gradients = triton_launch.backward(tensors, geometry)
    names = ("x", "weight", "bias", "mean_norm_weight", "var_norm_weight", "pos_proj.weight")
    got = {"y": y} | dict(zip(names, gradients, strict=True))
    if norm.var_norm_weight is None:  # one ratio for both
        got["mean_norm_weight"] = got["mean_norm_weight"] + got.pop("var_norm_weight")
    if mean is None:
        assert got.pop("mean_norm_weight") is None
    return got


def errors(got, want):
    assert got.keys() == want.keys()
    return {
        name: float((got[name].double() - value).abs().max() / value.abs().max().clamp_min(0.1))
        for name, value in want.items()
    }


def run_case(problems, name):
    norm, x, visible = make_case(problems, name)
    want = problems.exact(norm, x, visible)
    gradient = problems.make_tokens(*x.shape, seed=3)
    assert next(norm.parameters()).dtype == torch.float32
    return errors(by_kernels(norm, x, visible, gradient), want)


def run_official(problems, name):
    """A reference file of the released code."""
    with np.load(REFERENCE / f"{name}.npz") as file:
        data = {key: torch.from_numpy(file[key]) for key in file.files if key != "config"}
        config = json.loads(str(file["config"]))
    mean = "token" if config["only_var"] else "mixed"
    norm = problems.make_norm(config["C"], config["heads"], tuple(config["grid"]), mean=mean)
    norm.load_state_dict({k[6:]: v for k, v in data.items() if k.startswith("param/")})
    got = by_kernels(norm, data["x"], None, data["gy"])
    want = {"y": data["f64/y"], "x": data["f64/gx"]}
    names = [name for name, _ in norm.named_parameters()]
    return errors(got, want | {name: data[f"f64/grad/{name}"] for name in names})


def main() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    patch_once()
    problems = load_problems()
    out = {name: run_case(problems, name) for name in CASES}
    out |= {name: run_official(problems, name) for name in sys.argv[1:]}
    print(json.dumps(out))


if __name__ == "__main__":
    main()
