"""Legal ranges of single keys."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from triptych.config import ConfigError


@dataclass(frozen=True)
class Range:
    """An interval of legal values; an open end excludes its bound."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"more than {self.low:g}" if self.open_low else f"{self.low:g} or more"
        left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
        return f"in {left}{self.low:g}, {self.high:g}{right}"


POSITIVE = Range(0, open_low=True)
COUNT = Range(1)
NONNEGATIVE = Range(0)
SHARE = Range(0, 1)
BELOW_ONE = Range(0, 1, open_high=True)
PART = Range(0, 1, open_low=True)

RANGES: dict[str, Range] = {
    "seed": NONNEGATIVE,
    "backbone.mlp_ratio": POSITIVE,
    "backbone.patch_size": COUNT,
    "backbone.window_size": COUNT,
    "backbone.depths": COUNT,
    "backbone.embed_dims": COUNT,
    "backbone.sr_ratios": COUNT,
    "backbone.mlp_ratios": POSITIVE,
    "backbone.key_dim": COUNT,
    "backbone.attention_ratio": POSITIVE,
    "backbone.kernels": COUNT,
    "backbone.strides": COUNT,
    "backbone.token_dim": COUNT,
    "backbone.block_size": COUNT,
    "backbone.random_blocks": COUNT,
    "backbone.hashes": COUNT,
    "norm.pool_to": COUNT,
    "norm.position_lr_factor": NONNEGATIVE,
    "pretrain.epochs": NONNEGATIVE,
    "pretrain.batch_size": COUNT,
    "pretrain.mask_ratio": BELOW_ONE,
    "pretrain.mask_unit": COUNT,
    "pretrain.decoder_dim": COUNT,
    "pretrain.decoder_depth": NONNEGATIVE,
    "pretrain.decoder_heads": COUNT,
    "pretrain.learning_rate": POSITIVE,
    "pretrain.min_learning_rate": NONNEGATIVE,
    "pretrain.weight_decay": NONNEGATIVE,
    "pretrain.betas": BELOW_ONE,
    "pretrain.warmup_epochs": NONNEGATIVE,
    "pretrain.clip_grad": POSITIVE,
    "pretrain.drop_path": BELOW_ONE,
    "pretrain.secondary_ratio": BELOW_ONE,
    "pretrain.random_resized_crop": PART,
    "pretrain.start_learning_rate": NONNEGATIVE,
    "pretrain.milestones": COUNT,
    "data.image_size": COUNT,
    "data.channels": COUNT,
    "data.train_fraction": PART,
    "data.test_fraction": Range(0, 1, open_low=True, open_high=True),
    "data.workers": NONNEGATIVE,
    "data.crop_padding": NONNEGATIVE,
    "data.flip": SHARE,
    "data.random_resized_crop": PART,
    "data.color_jitter": NONNEGATIVE,
    "data.erasing": SHARE,
    "data.synthetic_images": Range(4),
    "data.synthetic_classes": Range(2),
    "data.scenes": Range(20),
    "data.min_length": NONNEGATIVE,
    "data.max_length": Range(4),
    "data.max_depth": Range(2),
    "data.max_args": Range(2),
    "data.train_sequences": COUNT,
    "data.test_sequences": COUNT,
    "data.expected_classes": COUNT,
    "data.expected_train": COUNT,
    "data.expected_test": COUNT,
    "data.shuffle_blocks": NONNEGATIVE,
    "data.short_side": COUNT,
    "data.long_side": COUNT,
    "data.training_sides": COUNT,
    "task.epochs": COUNT,
    "task.batch_size": COUNT,
    "task.learning_rate": POSITIVE,
    "task.min_learning_rate": NONNEGATIVE,
    "task.weight_decay": NONNEGATIVE,
    "task.betas": BELOW_ONE,
    "task.warmup_epochs": NONNEGATIVE,
    "task.layer_decay": PART,
    "task.clip_grad": POSITIVE,
    "task.label_smoothing": BELOW_ONE,
    "task.mixup": NONNEGATIVE,
    "task.cutmix": NONNEGATIVE,
    "task.drop_path": BELOW_ONE,
    "task.ema_decay": BELOW_ONE,
    "task.evaluate_every": COUNT,
    "task.label_fraction": PART,
    "task.start_learning_rate": NONNEGATIVE,
    "task.milestones": COUNT,
    "task.repeats": COUNT,
    "task.neighbours": COUNT,
    "task.temperature": POSITIVE,
    "task.regularization": POSITIVE,
    "task.severities": Range(1, 5),
    "task.test_images": COUNT,
    "task.test_sizes": COUNT,
    "task.detector.finest_stride": COUNT,
    "task.detector.channels": COUNT,
    "task.detector.extra_levels": Range(0, 4),
    "task.detector.anchor_scale": POSITIVE,
    "task.detector.anchor_octaves": COUNT,
    "task.detector.aspect_ratios": POSITIVE,
    "task.detector.box_width": COUNT,
    "task.detector.mask_width": COUNT,
    "task.detector.box_samples": COUNT,
    "task.detector.score_threshold": BELOW_ONE,
    "task.detector.detections": COUNT,
    "trainer.threads": COUNT,
    "trainer.checkpoint_every": COUNT,
    "trainer.limit_batches": COUNT,
    "trainer.devices": COUNT,
    "trainer.accumulate": COUNT,
    "measure.batch_size": COUNT,
    "measure.rounds": Range(3),
    "visualize.images": Range(1, 32),
    "visualize.probe_images": Range(2, 4096),
}


def check_range(key: str, value: Any, legal: Range) -> None:
    parts = value if isinstance(value, tuple) else (value,)
    for part in parts:
        if part is not None and not legal.holds(part):
            raise ConfigError(f"{key}={part:g} is out of range: it must be {legal}.")
