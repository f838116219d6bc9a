"""GreenMIM against dense pre-training and against the published scheme: time and memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from statistics import median
from time import perf_counter, sleep

import timm
import torch
from torch import Tensor, nn

from benchmarks.published_greenmim import PublishedGreenMIM
from benchmarks.rows import Row, Spread
from benchmarks.timing import Step, interleave, ratio
from triptych.data.loading import make_loader
from triptych.data.samples import Batch, ImageDataset, SampleKey
from triptych.measure import Candidate, macs_per_image, saved_for_backward, timing_lock
from triptych.mim import GreenMIM, MaskedImageModel, SimMIM, random_unit_mask
from triptych.tasks.step_masks import MaskedImages, MaskPlanner

TITLE = "GreenMIM"
NOTES = (
    "SimMIM is `triptych.mim.SimMIM` on timm's Swin: every token, a mask of its own for each "
    "image, ratio 0.6. Published is the released scheme, stated anew in "
    "`benchmarks/published_greenmim.py`; ours is `GreenMIM`; both with ratio 0.75 and, but for "
    "the row that compares the two, one mask for the batch. A step is forward and backward in "
    "float32 without an optimizer, and a new mask each time, planned within the step (training "
    "plans in the data loader); on a CPU a batch has 8 images for Swin-B, 16 for Swin-T and 1 at "
    "1024 pixels. Steps alternate in one process; medians [quartiles] of the ratios within a "
    "round. Timm's SimMIM and the published scheme bar pairs with -100, which makes their softmax "
    "a subnormal number, slow on a CPU; in a row of its own these count as 0. Multiply-adds is "
    "the ratio that arithmetic alone would give, counted in the forward pass of ours."
)
PUBLISHED, OURS, LIMIT = "published", "ours", "multiply-adds"
NONE = "–"
BASE, TINY = "swin_base_patch4_window7_224", "swin_tiny_patch4_window7_224"
MASKS = 16


@dataclass(frozen=True)
class Case:
    """Pre-training of a timm Swin on images of one size."""

    name: str
    size: int
    batch: int
    per_sample: bool = False

    def backbone(self) -> nn.Module:
        torch.manual_seed(0)
        # Six by six windows tile 192 pixels, as in SimMIM's own configuration.
        window = 6 if self.size == 192 else 7
        return timm.create_model(
            self.name, img_size=self.size, window_size=window, num_classes=0, drop_path_rate=0.0
        )

    def images(self, device: torch.device) -> Tensor:
        shape = (self.batch, 3, self.size, self.size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)

    def masks(self, ratio: float, *, per_sample: bool) -> list[Tensor]:
        """Masks (B, L) to be taken in turn."""
        units = (self.size // 32) ** 2
        generator = torch.Generator().manual_seed(2)
        draw = partial(random_unit_mask, units, ratio, self.batch, generator=generator)
        return [draw(per_sample=per_sample) for _ in range(MASKS)]

    def simmim(self, device: torch.device) -> Training:
        masks = self.masks(0.6, per_sample=True)
        return Training(SimMIM(self.backbone()), self.images(device), masks, _simmim_loss)

    def ours(self, device: torch.device) -> Training:
        masks = self.masks(0.75, per_sample=self.per_sample)
        return Training(GreenMIM(self.backbone()), self.images(device), masks, _our_loss)

    def published(self, device: torch.device) -> Training:
        model = PublishedGreenMIM(self.backbone())  # type: ignore[arg-type]
        masks = self.masks(0.75, per_sample=False)
        return Training(model, self.images(device), masks, _published_loss)


class Training:
    """Steps of one model: forward and backward, a new mask each time."""

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        masks: list[Tensor],
        loss: Callable[[nn.Module, Tensor, Tensor], Tensor],
    ) -> None:
        self.model = model.to(images.device).train()
        self.images, self.loss = images, loss
        self.masks = masks
        self.turn = cycle(masks)

    def __call__(self) -> None:
        self.model.zero_grad()
        self.loss(self.model, self.images, next(self.turn)).backward()

    def candidate(self) -> Candidate:
        batch = (self.images, self.masks[0])
        call: Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor] = lambda model, batch: (  # noqa: E731
            self.loss(model, *batch)
        )
        return Candidate(self.model, lambda: batch, len(self.images), call, call)


def run(device: torch.device) -> list[Row]:
    """Measure every case on ``device``."""
    batch = 8 if device.type == "cpu" else 64
    base, tiny = Case(BASE, 224, batch), Case(TINY, 224, 2 * batch)
    smaller = Case(BASE, 192, batch)
    # First, while the process is as fresh as a loader's worker.
    planning = _planning_row(Case(TINY, 1024, 1), 5.0)
    return [
        *_speed_rows(base, {base: 3.7, smaller: 2.65}, device),
        *_speed_rows(tiny, {tiny: 3.9}, device),
        *_without_denormals(tiny, device),
        _published_row(Case(TINY, 1024, max(1, batch // 16)), device),
        _per_sample_row(tiny, device),
        _saved_row(base, device),
        planning,
        _share_row(base, device),
    ]


def _speed_rows(case: Case, against: dict[Case, float], device: torch.device) -> list[Row]:
    """How many times faster than SimMIM at the resolutions ``against``."""
    dense = {str(other.size): other.simmim(device) for other in against}
    steps: dict[str, Training] = dense | {
        PUBLISHED: case.published(device),
        OURS: case.ours(device),
    }
    seconds = interleave(steps, device, rounds=5, warmup=1)
    macs = {name: macs_per_image(training.candidate()) for name, training in steps.items()}
    rows = []
    for other, least in against.items():
        size = str(other.size)
        values: dict[str, Spread | str] = {
            name: ratio(seconds, size, name) for name in (PUBLISHED, OURS)
        }
        values[LIMIT] = Spread.exact(macs[size] / macs[OURS])
        name = f"{_short(case)} at {case.size}: times as fast as SimMIM at {size}"
        rows.append(Row(name, values, f"≥ {least:g}", values[OURS].median >= least))
    return rows


def _without_denormals(case: Case, device: torch.device) -> list[Row]:
    """Against SimMIM while the CPU takes subnormal numbers for 0."""
    if device.type != "cpu" or not torch.set_flush_denormal(True):
        return []
    try:
        [row] = _speed_rows(case, {case: 0.0}, device)
    finally:
        torch.set_flush_denormal(False)
    return [replace(row, case=f"{row.case}, subnormal numbers as 0", reach=NONE, met=True)]


def _published_row(case: Case, device: torch.device) -> Row:
    steps = {PUBLISHED: case.published(device), OURS: case.ours(device)}
    gain = ratio(interleave(steps, device, rounds=5, warmup=1), PUBLISHED, OURS)
    macs = [macs_per_image(steps[name].candidate()) for name in (PUBLISHED, OURS)]
    values = {PUBLISHED: Spread.exact(1), OURS: gain, LIMIT: Spread.exact(macs[0] / macs[1])}
    name = f"{_short(case)} at {case.size}: times as fast as published"
    return Row(name, values, "≥ 1.5", gain.median >= 1.5)


def _per_sample_row(case: Case, device: torch.device) -> Row:
    other = Case(case.name, case.size, case.batch, per_sample=True)
    steps: dict[str, Step] = {"batch": case.ours(device), "sample": other.ours(device)}
    cost = ratio(interleave(steps, device, rounds=11, warmup=2), "sample", "batch")
    values: dict[str, Spread | str] = {PUBLISHED: "cannot", OURS: cost, LIMIT: NONE}
    name = f"{_short(case)} at {case.size}: a mask for each image, time over one for the batch"
    return Row(name, values, "≤ 1.05", cost.median <= 1.05)


def _saved_row(case: Case, device: torch.device) -> Row:
    """Bytes kept for the backward pass, over SimMIM's."""
    dense = saved_for_backward(case.simmim(device).candidate())
    share = {
        name: saved_for_backward(make(device).candidate()) / dense
        for name, make in ((PUBLISHED, case.published), (OURS, case.ours))
    }
    values: dict[str, Spread | str] = {name: Spread.exact(value) for name, value in share.items()}
    name = f"{_short(case)} at {case.size}: kept for backward, over SimMIM's {dense:.0f} MiB/image"
    return Row(name, values | {LIMIT: NONE}, "≤ 0.20", share[OURS] <= 0.20)


def _planning_row(case: Case, most: float) -> Row:
    seconds = _planning_seconds(case, rounds=9)
    values: dict[str, Spread | str] = {name: f"{1e3 * s:.1f} ms" for name, s in seconds.items()}
    met = 1e3 * seconds[OURS] <= most
    return Row(
        f"planning a mask, window 7, {case.size} px", values | {LIMIT: NONE}, f"≤ {most:g} ms", met
    )


def _planning_seconds(case: Case, rounds: int) -> dict[str, float]:
    """Median time of planning one mask, all stages and shifts."""
    backbone = case.backbone()
    ours = GreenMIM(backbone)
    published = PublishedGreenMIM(backbone)  # type: ignore[arg-type]
    masks = case.masks(0.75, per_sample=False)[:rounds]
    seconds: dict[str, list[float]] = {PUBLISHED: [], OURS: []}
    with timing_lock(exclusive=True):
        # One after the other: in a worker, too, plans follow plans.
        for name, plan in ((PUBLISHED, published.plan), (OURS, ours.plan)):
            for mask in [masks[0], *masks]:
                start = perf_counter()
                plan(mask[0])
                seconds[name].append(perf_counter() - start)
    return {name: median(values[1:]) for name, values in seconds.items()}


def _share_row(case: Case, device: torch.device) -> Row:
    """Time that a step waits for its plan: published plans within it, ours takes it over."""
    seconds = interleave(
        {PUBLISHED: case.published(device), OURS: case.ours(device)}, device, 3, warmup=1
    )
    step = {name: median(values) for name, values in seconds.items()}
    whole = _planning_seconds(case, rounds=9)
    handed_over = _hand_over_seconds(case, device)
    share = handed_over / step[OURS]
    values: dict[str, Spread | str] = {
        PUBLISHED: f"{whole[PUBLISHED] / step[PUBLISHED]:.2%}",
        OURS: f"{share:.3%} (in the loader {whole[OURS] / step[OURS]:.2%})",
        LIMIT: NONE,
    }
    name = f"{_short(case)} at {case.size}: share of a step that waits for masks and plans"
    return Row(name, values, "≤ 0.1 %", share <= 0.001)


def _hand_over_seconds(case: Case, device: torch.device) -> float:
    """Median time to take masks and plans over from a worker that is ahead, and to move them."""
    planner = MaskPlanner(GreenMIM(case.backbone()), ratio=0.75, per_sample=True, seed=0)
    images = MaskedImages(_NoImages(MASKS * case.batch), planner)
    loader = iter(make_loader(images, batch_size=case.batch, num_workers=1))
    next(loader)
    seconds = []
    for _ in range(MASKS - 1):
        sleep(0.3)  # the worker is ahead, as it is while a step runs
        start = perf_counter()
        next(loader).masks.to(device)
        seconds.append(perf_counter() - start)
    return median(seconds)


class _NoImages(ImageDataset):
    """Labels and numbers alone, so that nothing but masks and plans is waited for."""

    def __init__(self, count: int) -> None:
        self.labels = torch.zeros(count, dtype=torch.long)

    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch:
        indices = torch.tensor([key.index for key in keys])
        return Batch(torch.zeros(len(keys)), self.labels[indices], indices)


def _short(case: Case) -> str:
    return {BASE: "Swin-B", TINY: "Swin-T"}[case.name]


def _simmim_loss(model: nn.Module, images: Tensor, mask_BL: Tensor) -> Tensor:
    assert isinstance(model, MaskedImageModel)
    return model(images, mask_BL).loss


def _our_loss(model: nn.Module, images: Tensor, mask_BL: Tensor) -> Tensor:
    assert isinstance(model, MaskedImageModel)
    return model(images, mask_BL, model.plan(mask_BL)).loss


def _published_loss(model: nn.Module, images: Tensor, mask_BL: Tensor) -> Tensor:
    return model(images, mask_BL[0].to(images.device))
