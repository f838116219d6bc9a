"""Run records: one JSON file for each run, written whole or not at all.

The record, not the exit status or W&B, says what a run was and whether it is done. Tables, report
and dashboard are made from records.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
from importlib.metadata import version
from pathlib import Path
from typing import Any

SCHEMA = 1
RECORD = "record.json"
PACKAGES = ("torch", "torchvision", "timm", "pytorch-lightning", "hydra-core", "wandb", "numpy")


class RecordError(RuntimeError):
    """A run folder that cannot be used; the message is one sentence for the user."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``path`` whole or not at all: a synced sibling, then a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON; a NaN or an infinity is refused rather than written."""
    write_atomically(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        RecordError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordError(
            f"{path} is damaged ({error}); delete it and give the command again."
        ) from error


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of the run in ``folder``, or None where there is none yet."""
    path = folder / RECORD
    return read_json(path) if path.exists() else None


def digest(value: Any) -> str:
    """A hash of plain containers that does not depend on the order of keys."""
    text = json.dumps(value, sort_keys=True, allow_nan=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def git_state(root: Path) -> dict[str, Any]:
    """Commit of the code and whether the tree has changes; None outside a checkout."""

    def ask(*words: str) -> str | None:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    changes = ask("status", "--porcelain", "--untracked-files=no")
    return {
        "commit": ask("rev-parse", "HEAD"),
        "dirty": bool(changes) if changes is not None else None,
    }


def machine() -> dict[str, Any]:
    """Processor, cores and GPU; no host name."""
    import torch

    names = [
        line.split(":", 1)[1].strip()
        for line in _lines(Path("/proc/cpuinfo"))
        if line.startswith("model name")
    ]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cpu = names[0] if names else platform.processor() or platform.machine()
    return {"cpu": cpu, "cores": os.cpu_count(), "gpu": gpu, "system": platform.system()}


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@contextmanager
def folder_lock(folder: Path, *, wait: bool, what: str) -> Iterator[None]:
    """Hold ``folder`` against other processes of this machine.

    Raises:
        RecordError: another process holds it and ``wait`` is False.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as stream:
        try:
            flock(stream, LOCK_EX if wait else LOCK_EX | LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            raise RecordError(
                f"{what} is already being made by process {stream.read().strip() or '?'} in "
                f"{folder}; wait for it or stop it, then give the command again."
            ) from error
        stream.seek(0)
        stream.truncate()
        stream.write(str(os.getpid()))
        stream.flush()
        try:
            yield
        finally:
            flock(stream, LOCK_UN)
