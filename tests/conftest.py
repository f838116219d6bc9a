"""What many tests need: toy runs that take seconds."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run, and no failure because the machine was busy.
settings.register_profile("triptych", derandomize=True, deadline=None)
settings.load_profile("triptych")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("WANDB_SILENT", "true")
# The timing lock lies in the temporary folder: with one of their own the tests neither wait for
# what else trains on this machine nor keep it waiting.
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="triptych-tests-")
atexit.register(shutil.rmtree, os.environ["TMPDIR"], ignore_errors=True)

TOY = [
    "data=synthetic",
    "data.synthetic_images=40",
    "data.synthetic_classes=3",
    "data.crop_padding=0",
    "data.channels=1",
    "data.train_fraction=1",
    "task.label_fraction=1",
    "pretrain.epochs=1",
    "pretrain.warmup_epochs=0",
    "pretrain.batch_size=8",
    "pretrain.decoder_dim=16",
    "pretrain.decoder_heads=2",
    "task.epochs=1",
    "task.warmup_epochs=0",
    "task.batch_size=8",
    "measure.rounds=3",
    "measure.batch_size=4",
    "visualize.images=2",
    "visualize.probe_images=4",
    "backbone.depths=[1,1]",
    "backbone.embed_dim=16",
]


@pytest.fixture(scope="session")
def toy_options() -> list[str]:
    """The overrides alone, for fixtures that choose their own folder."""
    return list(TOY)


@pytest.fixture
def toy(tmp_path: Path) -> list[str]:
    """Overrides of a run that takes a few seconds and writes below ``tmp_path``."""
    return [*TOY, f"output_dir={tmp_path}"]
