"""What Hydra calls when a sweep ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class StudyReport(Callback):
    """Writes the study's tables and report once its cells have run, and names the failures."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from triptych.study.outcome import conclude

        conclude(Path(config.output_dir) / config.study)
