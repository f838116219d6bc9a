"""A classifier's errors on sets of corrupted images, and what a record keeps of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

from triptych.choices import Corruption
from triptych.data.samples import ImageDataset
from triptych.tasks.corruption_error import (
    IMAGENET_CLASSES,
    IMAGENET_IMAGES,
    SEVERITIES,
    Errors,
    corruption_error,
    mean_errors,
    missing_sets,
    relative_corruption_error,
)
from triptych.tasks.progress import Progress, ProgressSink

Row = dict[str, Any]
Name = tuple[Corruption, int]


def asked(corruptions: Sequence[str], severities: Sequence[int]) -> list[Name]:
    """Corruptions, all fifteen where none is named, at each severity, in their usual order."""
    names = [name for name in Corruption if not corruptions or name in corruptions]
    return [(name, severity) for name in names for severity in sorted(severities)]


def error_rows(
    sets: Iterable[tuple[Name, ImageDataset]],
    accuracy: Callable[[ImageDataset], float],
    *,
    count: int,
    sink: ProgressSink,
) -> list[Row]:
    """One row for each of the ``count`` sets: corruption, severity, error and images."""
    rows: list[Row] = []
    for (corruption, severity), images in sets:
        sink(Progress("robustness", len(rows) / count, f"{corruption} {severity}"))
        rows.append(
            {
                "corruption": str(corruption),
                "severity": severity,
                "error": 1 - accuracy(images),
                "images": len(images),
            }
        )
    return rows


def errors_of(rows: Sequence[Row]) -> dict[Corruption, dict[int, float]]:
    """``rows`` by corruption and severity."""
    errors: dict[Corruption, dict[int, float]] = {}
    for row in rows:
        errors.setdefault(Corruption(row["corruption"]), {})[row["severity"]] = row["error"]
    return errors


def robustness_metrics(
    rows: Sequence[Row], clean: float, wanted: Sequence[Name]
) -> dict[str, float]:
    """Errors of the clean images, of each corruption that is whole, and of all of them.

    The mean of all is there only if every set in ``wanted`` has been asked.
    """
    errors = errors_of(rows)
    whole = {
        corruption: row
        for corruption, row in errors.items()
        if len(row) == sum(name == corruption for name, _ in wanted)
    }
    found = {"corruption/clean_error": clean}
    if len(rows) == len(wanted):
        found["corruption/mean_error"] = fmean(mean_errors(whole).values())
    return found | {
        f"corruption/error/{corruption}": error for corruption, error in mean_errors(whole).items()
    }


def imagenet_metrics(
    errors: Errors, clean: float, *, num_classes: int, images: int
) -> tuple[dict[str, float], list[str]]:
    """mCE and relative mCE where the sets are those of AlexNet's errors; else why there is none.

    Args:
        clean: error on the validation set.
        num_classes, images: of one set.
    """
    missing = missing_sets(errors)
    if missing:
        return {}, [f"no mCE: {len(missing)} of {15 * len(SEVERITIES)} sets are missing"]
    if (num_classes, images) != (IMAGENET_CLASSES, IMAGENET_IMAGES):
        return {}, [
            f"no mCE: AlexNet's errors are of {IMAGENET_IMAGES} images of {IMAGENET_CLASSES} "
            f"classes, not of {images} of {num_classes}"
        ]
    return {
        "corruption/mce": corruption_error(errors),
        "corruption/relative_mce": relative_corruption_error(errors, clean),
    }, []
