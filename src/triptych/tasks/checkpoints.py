"""Checkpoints that a kill at any moment cannot damage.

Lightning writes through the system's temporary folder, which is atomic only where that lies on
the same file system. Here the file is written beside its target, synced, renamed, and carries a
digest; the one before it is kept until the next.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import CheckpointIO

from triptych.records import write_atomically

LAST = "last.ckpt"


class CheckpointError(RuntimeError):
    """No checkpoint can be used; the message is one sentence for the user."""


class AtomicCheckpointIO(CheckpointIO):
    """``path`` holds the newest checkpoint, ``path``.previous the one before."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        content = buffer.getvalue()
        target = Path(path)
        if target.exists():
            os.replace(target, _previous(target))
        write_atomically(target, hashlib.sha256(content).digest() + content)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        content = _verified(Path(path))
        if content is None:
            raise CheckpointError(f"the checkpoint {path} is damaged; delete it to start afresh.")
        return torch.load(io.BytesIO(content), map_location=map_location, weights_only=True)

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)
        _previous(Path(path)).unlink(missing_ok=True)


def _previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")


def _verified(path: Path) -> bytes | None:
    content = path.read_bytes()
    found, body = content[:32], content[32:]
    return body if hashlib.sha256(body).digest() == found else None


def usable_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in ``folder``; None where there has never been one.

    Raises:
        CheckpointError: there are checkpoints, but none is whole.
    """
    newest = folder / LAST
    present = [path for path in (newest, _previous(newest)) if path.exists()]
    for path in present:
        if _verified(path) is not None:
            return path
    if present:
        raise CheckpointError(
            f"every checkpoint in {folder} is damaged ({', '.join(p.name for p in present)}); "
            "delete them to start this stage afresh."
        )
    return None
