"""Every Triton kernel compiles for an H100 or H200, down to machine code, without such a device."""

import dataclasses
import inspect

import pytest

pytest.importorskip("triton")
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from triptych.norms.kernels.cpu import Geometry
from triptych.norms.kernels.triton_backward import backward_kernel
from triptych.norms.kernels.triton_forward import forward_kernel
from triptych.norms.kernels.triton_plan import make_plan
from triptych.norms.kernels.triton_sums import sums_kernel
from triptych.norms.kernels.triton_tokens import finish_kernel, statistics_kernel

HOPPER = GPUTarget("cuda", 90, 32)
SHARED_MEMORY = 227 * 1024
NUMBERS = {"tiles", "tokens", "slot_stride", "count", "batch"}
TOKENS = {"x", "y", "y_gradient", "x_gradient"}
SMALL = [statistics_kernel, finish_kernel, sums_kernel]
TILES = [forward_kernel, backward_kernel]
VIT_S = (14, 14), 6, 64


def plan_for(grid, heads, features, masked):
    geometry = Geometry(*grid, 1, True, 1e-5)
    return make_plan(
        geometry, heads=heads, features=features, mixed=True, masked=masked, hidden=masked
    )


def compiled(kernel, plan, tokens):
    signature, aligned = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name == "PLAN":
            signature[name] = "constexpr"
        elif name in NUMBERS:
            signature[name] = "i32"
        else:
            of = tokens if name in TOKENS else "i32" if name == "slot" else "fp32"
            signature[name] = f"*{of}"
            aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs={"PLAN": plan}, attrs=aligned)
    options = {"num_warps": plan.warps, "num_stages": 1}
    return triton.compile(source, target=HOPPER, options=options)


def check(kernel, plan, tokens):
    made = compiled(kernel, plan, tokens)
    assert made.asm["cubin"][:4] == b"\x7fELF"
    assert made.metadata.shared <= SHARED_MEMORY
    return made


@pytest.mark.parametrize("kernel", SMALL, ids=lambda kernel: kernel.__name__)
def test_kernels_over_tokens(kernel):
    check(kernel, plan_for(*VIT_S, True), "bf16")


@pytest.mark.parametrize("kernel", TILES, ids=lambda kernel: kernel.__name__)
def test_tiles_of_a_vit_s(kernel):
    made = check(kernel, plan_for(*VIT_S, False), "bf16")
    assert "mma.sync" in made.asm["ptx"]  # tensor cores


@pytest.mark.slow
@pytest.mark.parametrize("kernel", TILES, ids=lambda kernel: kernel.__name__)
@pytest.mark.parametrize(
    ("grid", "heads", "features", "masked"), [((14, 14), 6, 64, True), ((56, 56), 4, 24, False)]
)
def test_tiles_of_other_problems(kernel, grid, heads, features, masked):
    check(kernel, plan_for(grid, heads, features, masked), "fp32")


def test_a_plan_names_all_that_a_compilation_depends_on():
    """Its text is part of the key under which Triton keeps compiled kernels."""
    plan = plan_for(*VIT_S, False)
    for field in dataclasses.fields(plan):
        assert f"{field.name}=" in repr(plan)
    assert inspect.getmodule(type(plan)).__name__.endswith("triton_plan")
