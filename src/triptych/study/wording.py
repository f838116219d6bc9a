"""The words and numbers that a reader sees: display names, order of the axes, units."""

from __future__ import annotations

import math

SETTING = ("backbone", "data", "task")
LABELS = ("backbone", "norm", "pretrain", "task", "data")
# What a task is about, before what every classifier has.
LEADING = ("corruption/mean_error", "perturbation/occlusion_random", "test/accuracy", "test/box_ap")

VALUE_NAMES = {
    "ln": "LN",
    "dtn": "DTN",
    "bn": "BN",
    "gn": "GN",
    "in": "IN",
    "scale": "ScaleNorm",
    "rms": "RMSNorm",
    "dyt": "DyT",
    "none": "no pre-training",
    "standard": "standard MIM",
    "mae": "MAE",
    "uniform": "uniform masking",
    "checkpoint": "weights from a file",
    "pretrained": "published weights",
    "untrained": "untrained",
    "greenmim": "GreenMIM",
}
METRIC_NAMES = {
    "test/accuracy": "accuracy",
    "test/box_ap": "box AP",
    "test/box_ap50": "box AP50",
    "test/box_ap75": "box AP75",
    "test/box_ap_small": "box AP of small objects",
    "test/box_ap_medium": "box AP of medium objects",
    "test/box_ap_large": "box AP of large objects",
    "test/mask_ap": "mask AP",
    "test/mask_ap50": "mask AP50",
    "test/mask_ap75": "mask AP75",
    "test/mask_ap_small": "mask AP of small objects",
    "test/mask_ap_medium": "mask AP of medium objects",
    "test/mask_ap_large": "mask AP of large objects",
    "test/accuracy_top5": "top-5 accuracy",
    "test/accuracy_commonest": "accuracy of the commonest answer",
    "corruption/mean_error": "mean corruption error",
    "corruption/clean_error": "error on clean images",
    "corruption/mce": "mCE",
    "corruption/relative_mce": "relative mCE",
    "perturbation/occlusion_random": "mean accuracy under random occlusion",
    "perturbation/occlusion_salient": "mean accuracy with objects occluded",
    "perturbation/occlusion_non_salient": "mean accuracy with backgrounds occluded",
    "perturbation/shuffle": "mean accuracy under shuffling",
    "time/total": "total training time",
    "time/pretrain": "pre-training time",
    "time/task": "task training time",
    "time/visualize": "time for pictures",
    "time/visualize/share": "time for pictures over training time",
    "time/pretrain/data_wait": "share of pre-training that waits for data",
    "time/task/data_wait": "share of task training that waits for data",
    "cost/parameters": "parameters",
    "cost/task/macs": "MACs",
    "cost/task/train_throughput": "training throughput",
    "cost/task/inference_throughput": "inference throughput",
    "cost/task/peak_memory": "peak training memory",
    "cost/task/saved_for_backward": "bytes kept for backward",
    "cost/pretrain/train_throughput": "pre-training throughput",
    "cost/pretrain/peak_memory": "peak pre-training memory",
    "cost/pretrain/saved_for_backward": "bytes kept for backward in pre-training",
    "cost/pretrain/macs": "pre-training MACs",
    "cost/pretrain/inference_throughput": "encoding throughput in pre-training",
}
_TRAINING = "images/s of whole training steps (forward, backward, optimizer) on a batch that is on "
_TURNS = "the device already; median over rounds in which the models take turns"
_PEAK = "growth over a first training step: gradients, optimizer state, activations, work space"
_SAVED = "what the forward pass keeps for the backward pass, without weights and batch; exact"
_MACS = (
    "multiply-adds of predicting one image, in matrix products, convolutions and attention; exact"
)
METRIC_NOTES = {
    "cost/parameters": "all parameters of the task model; exact",
    "cost/task/macs": _MACS,
    "cost/pretrain/macs": _MACS,
    "cost/task/train_throughput": _TRAINING + _TURNS,
    "cost/pretrain/train_throughput": _TRAINING + _TURNS,
    "cost/task/inference_throughput": f"images/s of predictions without gradients, on {_TURNS}",
    "cost/pretrain/inference_throughput": f"images/s of encoding visible tokens, on {_TURNS}",
    "cost/task/peak_memory": _PEAK,
    "cost/pretrain/peak_memory": _PEAK,
    "cost/task/saved_for_backward": _SAVED,
    "cost/pretrain/saved_for_backward": _SAVED,
    "time/pretrain": "seconds of pre-training, also where its weights were made once and reused",
    "time/task": "seconds of training for the task",
    "time/visualize": "seconds of making the pictures of visualize=light or full, numbers included",
    "time/total": "seconds of pre-training and of training for the task together",
}
UNSCALED_UNITS = ("s", "MiB", "MiB/image", "MiB/sequence", "GiB", "fraction")
# Baselines stand first, the methods under study last; what is unknown stands between, by name.
_RANK = {
    "norm": {"ln": 0, "dtn": 2},
    "pretrain": {"none": 0, "standard": 1, "greenmim": 3},
}
_UNLISTED_RANK = {"norm": 1, "pretrain": 2}


def value_name(value: str) -> str:
    """``"ln"`` → ``"LN"``; a value without a display name is shown as it is.

    Options in brackets stay: ``"dtn(form=paper)"`` → ``"DTN(form=paper)"``.
    """
    name, bracket, options = value.partition("(")
    return VALUE_NAMES.get(name, name) + bracket + options


def measured_once(metric: str) -> bool:
    """Whether all seeds share one measurement of the metric, so that it has no interval.

    Cost belongs to a kind of model, not to its weights: it is measured once and noted in the
    record of every seed.
    """
    return metric.startswith("cost/")


def metric_name(metric: str) -> str:
    """``"test/accuracy"`` → ``"accuracy"``; otherwise the path in words."""
    return METRIC_NAMES.get(
        metric, metric.removeprefix("test/").replace("/", " ").replace("_", " ")
    )


def setting_name(setting: tuple[str, ...]) -> str:
    """``swin_nano · mnist_5k · classification``."""
    return " · ".join(setting)


def axis_rank(axis: str, value: str) -> tuple[int, str]:
    """Sort key of a label's value: baselines first (LN, no pre-training), then by name."""
    name = value.partition("(")[0]
    return _RANK.get(axis, {}).get(name, _UNLISTED_RANK.get(axis, 0)), value


def format_value(value: float, unit: str) -> str:
    """A value with its unit: 0.953 fraction → ``95.3 %``, 1.1e7 MAC → ``11.0 M MAC``."""
    if not math.isfinite(value):
        return "not finite"
    if unit == "fraction":
        return f"{100 * value:.1f} %"
    if unit == "s":
        return format_duration(value)
    scale, prefix = _scale(value, unit)
    whole = scale == 1 and float(value).is_integer()
    text = f"{value / scale:,.{0 if whole else _digits(value / scale)}f}"
    return _with_unit(text, prefix, unit)


def format_mean(mean: float, half_width: float, unit: str) -> str:
    """``95.3 ± 0.8 %``; without an interval (NaN half width) only the mean."""
    if math.isnan(half_width) or not math.isfinite(mean):
        return format_value(mean, unit)
    if unit == "fraction":
        return f"{100 * mean:.1f} ± {100 * half_width:.1f} %"
    scale, prefix = _scale(mean, unit)
    if half_width == 0:
        return f"{format_value(mean, unit)}"
    # As many decimals as three figures of the mean or one of the half width need.
    digits = max(_digits(mean / scale), _digits(half_width / scale) - 2)
    text = f"{mean / scale:,.{digits}f} ± {half_width / scale:,.{digits}f}"
    return _with_unit(text, prefix, unit)


def format_change(value: float, unit: str) -> str:
    """A signed difference; fractions in percentage points."""
    if not math.isfinite(value):
        return "not finite"
    if unit == "fraction":
        return f"{_signed(100 * value, 2)} points"
    scale, prefix = _scale(value, unit)
    return _with_unit(_signed(value / scale, _digits(value / scale)), prefix, unit)


def format_range(low: float, high: float, unit: str) -> str:
    """The two ends of an interval of a difference, in one scale; fractions in points, no unit."""
    if unit == "fraction":
        return f"{_signed(100 * low, 2)} to {_signed(100 * high, 2)}"
    scale, prefix = _scale(max(abs(low), abs(high)), unit)
    ends = [_signed(end / scale, _digits(end / scale)) for end in (low, high)]
    return f"{ends[0]} to {ends[1]} {prefix}".rstrip()


def format_p(p: float) -> str:
    if math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def format_duration(seconds: float) -> str:
    """Seconds as a person says them: ``42.1 s``, ``2 min 5 s``, ``1 h 3 min``."""
    if not math.isfinite(seconds):
        return "not finite"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def _scale(value: float, unit: str) -> tuple[float, str]:
    if unit in UNSCALED_UNITS:
        return 1.0, ""
    for least, scale, prefix in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return scale, prefix
    return 1.0, ""


def _digits(value: float) -> int:
    """Decimals that leave three significant figures, none where the number has them already."""
    if value == 0 or not math.isfinite(value):
        return 0
    return min(max(0, 2 - math.floor(math.log10(abs(value)))), 6)


def _signed(value: float, digits: int) -> str:
    text = f"{value:+,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        return f"{0:.{digits}f}"
    return text.replace("-", "−")


def _with_unit(text: str, prefix: str, unit: str) -> str:
    return " ".join(part for part in (text, prefix, "" if unit == "count" else unit) if part)
