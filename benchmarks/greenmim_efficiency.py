"""Time and memory of a pre-training step of Swin-T against the resolution; picture and numbers."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from matplotlib.figure import Figure

from benchmarks.greenmim import LIMIT, OURS, PUBLISHED, TINY, Case, Training
from benchmarks.rows import Row, Spread
from benchmarks.timing import interleave, ratio
from triptych.measure import macs_per_image, saved_for_backward
from triptych.palette import PRETRAIN_COLOURS

TITLE = "GreenMIM against the resolution"
NOTES = (
    "Swin-T, window 7 (6 at 192 pixels), forward and backward in float32, one mask for the batch, "
    "planned within the step. SimMIM is every token, with ratio 0.6; published is the released "
    "scheme stated anew. Multiply-adds is the gain over SimMIM that arithmetic alone would give. "
    "The picture is in `experiments/greenmim_efficiency/results/`."
)
RESULTS = Path(__file__).parents[1] / "experiments" / "greenmim_efficiency" / "results"
SIZES = (192, 224, 384, 512, 768, 1024)
SIMMIM = "SimMIM"
METHODS = (SIMMIM, PUBLISHED, OURS)
COLOURS = {
    SIMMIM: PRETRAIN_COLOURS["standard"],
    PUBLISHED: "#E69F00",
    OURS: PRETRAIN_COLOURS["greenmim"],
}


@dataclass(frozen=True)
class Point:
    """One resolution: seconds and MiB kept for backward of an image, and multiply-adds of one."""

    size: int
    seconds: dict[str, float]
    kept: dict[str, float]
    macs: dict[str, float]
    gain: dict[str, Spread]

    @property
    def limit(self) -> float:
        """Times as fast as SimMIM if time were multiply-adds."""
        return self.macs[SIMMIM] / self.macs[OURS]


def run(device: torch.device) -> list[Row]:
    """Measure all resolutions, write picture and numbers, and give the table."""
    points = [measure(size, device) for size in SIZES]
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_numbers(points, RESULTS / f"efficiency-{device.type}.csv")
    picture(points).savefig(RESULTS / f"efficiency-{device.type}.png", dpi=150)
    return [_row(point) for point in points]


def measure(size: int, device: torch.device) -> Point:
    """All methods at one resolution, step by step in turn."""
    budget = 4 if device.type == "cpu" else 256
    case = Case(TINY, size, max(1, round(budget * (224 / size) ** 2)))
    steps: dict[str, Training] = {
        SIMMIM: case.simmim(device),
        PUBLISHED: case.published(device),
        OURS: case.ours(device),
    }
    seconds = interleave(steps, device, rounds=3, warmup=1)
    candidates = {name: training.candidate() for name, training in steps.items()}
    return Point(
        size,
        {name: median(values) / case.batch for name, values in seconds.items()},
        {name: saved_for_backward(candidate) for name, candidate in candidates.items()},
        {name: macs_per_image(candidate) for name, candidate in candidates.items()},
        {name: ratio(seconds, SIMMIM, name) for name in (PUBLISHED, OURS)},
    )


def _row(point: Point) -> Row:
    values: dict[str, Spread | str] = {
        "published: times as fast as SimMIM": point.gain[PUBLISHED],
        "ours: times as fast as SimMIM": point.gain[OURS],
        LIMIT: Spread.exact(point.limit),
        "published: kept / SimMIM": Spread.exact(point.kept[PUBLISHED] / point.kept[SIMMIM]),
        "ours: kept / SimMIM": Spread.exact(point.kept[OURS] / point.kept[SIMMIM]),
    }
    met = point.gain[OURS].median >= point.gain[PUBLISHED].median
    return Row(f"{point.size} px", values, "faster than published", met)


def write_numbers(points: Sequence[Point], path: Path) -> None:
    """One line a resolution and method."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ("pixels", "method", "seconds_per_image", "mib_kept_per_image", "macs_per_image")
        )
        for point in points:
            for name in METHODS:
                numbers = point.seconds[name], point.kept[name], point.macs[name]
                writer.writerow((point.size, name, *(f"{number:.6g}" for number in numbers)))


def picture(points: Sequence[Point]) -> Figure:
    """Time and memory of an image, and the gain in time over SimMIM."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    time, memory, gain = figure.subplots(1, 3)
    sizes = [point.size for point in points]
    for name in METHODS:
        style = {"color": COLOURS[name], "marker": "o", "label": name}
        time.plot(sizes, [point.seconds[name] for point in points], **style)
        memory.plot(sizes, [point.kept[name] for point in points], **style)
        if name != SIMMIM:
            spreads = [point.gain[name] for point in points]
            gain.plot(sizes, [spread.median for spread in spreads], **style)
            low, high = [s.lower for s in spreads], [s.upper for s in spreads]
            gain.fill_between(sizes, low, high, color=COLOURS[name], alpha=0.2, linewidth=0)
    limit = [point.seconds[SIMMIM] / point.limit for point in points]
    dashed = {"color": "#444444", "linestyle": "--", "label": "multiply-adds alone"}
    time.plot(sizes, limit, **dashed)
    gain.plot(sizes, [point.limit for point in points], **dashed)
    gain.axhline(1, color=COLOURS[SIMMIM], linewidth=1)
    for axes, label in ((time, "seconds per image"), (memory, "MiB kept for backward per image")):
        axes.set(xscale="log", yscale="log", ylabel=label)
    gain.set(xscale="log", ylabel="times as fast as SimMIM", ylim=(0, None))
    for axes in (time, memory, gain):
        axes.set_xlabel("image side in pixels")
        axes.set_xticks(sizes, [str(size) for size in sizes], rotation=45, minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    time.legend(frameon=False, fontsize="small")
    figure.suptitle("A pre-training step of Swin-T: forward and backward")
    return figure
