"""DTN against LayerNorm and against the published dense computation: time and memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.published_dtn import PublishedDTN
from benchmarks.rows import Row, Spread
from benchmarks.timing import Step, interleave, ratio
from triptych.measure import Candidate, can_measure_peak, peak_memory, saved_for_backward
from triptych.measure.candidate import TrainingStep
from triptych.norms import DynamicTokenNorm, replace_norms
from triptych.norms.kernels import kernel_status

TITLE = "Dynamic Token Normalization"
NOTES = (
    "LN is `nn.LayerNorm`; published is the dense computation of the released code, stated anew in "
    "`benchmarks/published_dtn.py`; ours is `DynamicTokenNorm`. Modules: forward and backward with "
    "a fixed gradient. Training step: forward, cross-entropy, backward and AdamW of a ViT-S at 224 "
    "pixels with 196 patch tokens and the norm at 20 of its 25 sites. All in float32, alternating "
    "step by step in one process; medians [quartiles] of the ratios within a round."
)
PUBLISHED, OURS, GAIN = "published / LN", "ours / LN", "published / ours"
STEP_CASE = "ViT-S training step, 20 DTN layers, batch 8"


@dataclass(frozen=True)
class ModuleCase:
    """A norm by itself: x (batch, height·width, dim), and what is to be reached."""

    batch: int
    grid: tuple[int, int]
    dim: int
    heads: int
    most: float
    least_gain: float
    rounds: int

    def __str__(self) -> str:
        count = self.grid[0] * self.grid[1]
        return f"module ({self.batch}, {count}, {self.dim}), {self.heads} heads"

    def norms(self, device: torch.device) -> dict[str, nn.Module]:
        return {
            "LN": nn.LayerNorm(self.dim).to(device),
            "published": PublishedDTN(self.dim, self.heads, self.grid).to(device),
            "ours": DynamicTokenNorm(self.dim, self.heads, self.grid).to(device),
        }

    def tokens(self, device: torch.device, seed: int) -> Tensor:
        shape = (self.batch, self.grid[0] * self.grid[1], self.dim)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


MODULES = (
    ModuleCase(32, (14, 14), 384, 6, most=12, least_gain=10, rounds=21),
    ModuleCase(64, (8, 8), 192, 4, most=8, least_gain=6, rounds=41),
    ModuleCase(2, (56, 56), 64, 1, most=40, least_gain=40, rounds=7),
    ModuleCase(2, (56, 56), 64, 4, most=40, least_gain=40, rounds=5),
)


def run(device: torch.device) -> list[Row]:
    """Measure every case on ``device``."""
    if device.type == "cpu":
        print(kernel_status())
    rows = [_module_row(case, device) for case in MODULES]
    rows.append(_visible_row(device))
    if device.type == "cuda":
        rows.append(_bfloat16_row(device))
    rows += _training_rows(device)
    rows.append(_saved_row(MODULES[0], device))
    return rows


def _module_row(case: ModuleCase, device: torch.device) -> Row:
    x, gradient = case.tokens(device, 0).requires_grad_(), case.tokens(device, 1)
    steps = {name: _module_step(norm, x, gradient) for name, norm in case.norms(device).items()}
    seconds = interleave(steps, device, case.rounds)
    values = _ratios(seconds)
    met = values[OURS].median <= case.most and values[GAIN].median >= case.least_gain
    reach = f"≤ {case.most:g} × LN, ≥ {case.least_gain:g} × faster"
    return Row(str(case), values, reach, met)


def _visible_row(device: torch.device) -> Row:
    """A visible-token encoder's call: a quarter of the tokens, other ones in every sample."""
    batch, count, kept, dim, heads = 64, 196, 49, 384, 6
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(batch, count, generator=generator).argsort(1)[:, :kept]
    visible = torch.zeros(batch, count, dtype=torch.bool).scatter(1, order, True).to(device)
    x = torch.randn(batch, kept, dim, generator=generator).to(device).requires_grad_()
    gradient = torch.randn(batch, kept, dim, generator=generator).to(device)
    ln, ours = nn.LayerNorm(dim).to(device), DynamicTokenNorm(dim, heads, (14, 14)).to(device)
    steps = {
        "LN": lambda: ln(x).backward(gradient),
        "ours": lambda: ours(x, visible).backward(gradient),
    }
    own = ratio(interleave(steps, device, 21), "ours", "LN")
    values: dict[str, Spread | str] = {PUBLISHED: "cannot", OURS: own, GAIN: "cannot"}
    name = f"visible tokens ({batch}, {kept} of {count}, {dim}), {heads} heads"
    return Row(name, values, "≤ 12 × LN", own.median <= 12)


def _bfloat16_row(device: torch.device) -> Row:
    """Low-precision tokens, as mixed-precision training on a GPU has them."""
    case = ModuleCase(128, (14, 14), 384, 6, most=4, least_gain=0, rounds=41)
    x = case.tokens(device, 0).bfloat16().requires_grad_()
    gradient = case.tokens(device, 1).bfloat16()
    norms = case.norms(device)
    steps = {name: _module_step(norms[name].bfloat16(), x, gradient) for name in ("LN", "ours")}
    own = ratio(interleave(steps, device, case.rounds), "ours", "LN")
    values: dict[str, Spread | str] = {PUBLISHED: "cannot", OURS: own, GAIN: "cannot"}
    return Row(f"{case}, bfloat16", values, f"≤ {case.most:g} × LN", own.median <= case.most)


def _ratios(seconds: dict[str, list[float]]) -> dict[str, Spread]:
    return {
        PUBLISHED: ratio(seconds, "published", "LN"),
        OURS: ratio(seconds, "ours", "LN"),
        GAIN: ratio(seconds, "published", "ours"),
    }


def _module_step(norm: nn.Module, x: Tensor, gradient: Tensor) -> Step:
    def step() -> None:
        x.grad = None
        norm.zero_grad()
        norm(x).backward(gradient)

    return step


def _training_rows(device: torch.device) -> list[Row]:
    candidates = {name: _vit_candidate(name, device) for name in ("LN", "published", "ours")}
    steps = {name: TrainingStep(candidate) for name, candidate in candidates.items()}
    values = _ratios(interleave(steps, device, 9, warmup=1))
    rows = [Row(STEP_CASE, values, "≤ 1.06 × LN", values[OURS].median <= 1.06)]
    del steps
    if can_measure_peak(device):
        peak = {name: peak_memory(candidate) for name, candidate in candidates.items()}
        share = {
            PUBLISHED: Spread.exact(peak["published"] / peak["LN"]),
            OURS: Spread.exact(peak["ours"] / peak["LN"]),
            GAIN: Spread.exact(peak["published"] / peak["ours"]),
        }
        met = share[OURS].median <= 1.03
        rows.append(Row("peak memory of that step", share, "≤ 1.03 × LN", met))
    return rows


def _vit_candidate(norm: str, device: torch.device) -> Candidate:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_small_patch16_224", class_token=False, global_pool="avg", num_classes=1000
    )
    if norm == "published":
        replace_norms(model, _published, last_plain=2)
    elif norm == "ours":
        replace_norms(model, "dtn", last_plain=2)
    model.to(device)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 224, 224, generator=generator).to(device)
    target = torch.randint(1000, (8,), generator=generator).to(device)
    return Candidate(
        model,
        lambda: (images, target),
        images=8,
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        infer=lambda model, batch: model(batch[0]),
    )


def _published(
    *, dim: int, num_heads: int, grid_size: tuple[int, int], prefix_tokens: int
) -> nn.Module:
    assert prefix_tokens == 0  # the published code has no cls token in these blocks
    return PublishedDTN(dim, num_heads, grid_size)


def _saved_row(case: ModuleCase, device: torch.device) -> Row:
    """Bytes kept for the backward pass besides x and the parameters."""
    saved = {name: _saved_bytes(norm, case, device) for name, norm in case.norms(device).items()}
    most = 4 * (case.heads + 4) * case.batch * case.grid[0] * case.grid[1]
    values: dict[str, Spread | str] = {
        PUBLISHED: f"{saved['published'] / 1e6:.1f} MB / {saved['LN'] / 1e6:.2f} MB",
        OURS: f"{saved['ours'] / 1e6:.2f} MB / {saved['LN'] / 1e6:.2f} MB",
        GAIN: Spread.exact(saved["published"] / saved["ours"]),
    }
    reach = f"≤ heads + 4 floats a token ({most / 1e6:.2f} MB)"
    name = f"kept for backward besides x, {case}"
    return Row(name, values, reach, saved["ours"] <= most)


def _saved_bytes(norm: nn.Module, case: ModuleCase, device: torch.device) -> float:
    make: Callable[[], Tensor] = lambda: case.tokens(device, 0).requires_grad_()  # noqa: E731
    candidate = Candidate(
        norm, make, images=1, loss=lambda model, x: model(x).sum(), infer=lambda model, x: model(x)
    )
    return saved_for_backward(candidate) * 2**20
