"""Keep a benchmark's rows with what they depend on: the machine, the versions, the date."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.rows import Row, table

RESULTS = Path(__file__).parent / "results"


def conditions(device: torch.device) -> dict[str, str]:
    """What the numbers depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": name,
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def write(suite: str, title: str, notes: str, device: torch.device, rows: Sequence[Row]) -> Path:
    """Write results/<suite>-<device>.md and .json; returns the first."""
    about = conditions(device)
    named = ", ".join(f"{key} {value}" for key, value in about.items())
    command = f"python -m benchmarks --device {device.type} --only {suite}"
    text = f"# {title}\n\n`{command}`: {named}.\n\n{notes}\n\n{table(rows)}\n"
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{suite}-{device.type}.md"
    path.write_text(text)
    record = {"suite": suite, **about, "rows": [asdict(row) for row in rows]}
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    return path


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
