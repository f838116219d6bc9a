"""``python -m benchmarks --device cpu [--only dtn]``: run the suites and keep their tables.

A suite is a module with TITLE, NOTES and ``run(device) -> list[Row]``. It holds the timing lock for
one measurement at a time, so that trainings beside it go on in between.
"""

from __future__ import annotations

import argparse
import importlib
import sys

import torch

from benchmarks.report import write
from benchmarks.rows import table

SUITES = {"dtn": "benchmarks.dtn", "greenmim": "benchmarks.greenmim"}
ON_REQUEST = {"greenmim_efficiency": "benchmarks.greenmim_efficiency"}  # too long for every day


def main() -> int:
    """Exit status 0 if everything to be reached was, 1 if not, 2 if nothing could be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", choices=(*SUITES, *ON_REQUEST), action="append")
    parser.add_argument("--threads", type=int, default=1, help="threads of the CPU (1)")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device here; --device cpu measures on the CPU", file=sys.stderr)
        return 2
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    met = True
    for name in arguments.only or SUITES:
        suite = importlib.import_module((SUITES | ON_REQUEST)[name])
        rows = suite.run(device)
        path = write(name, suite.TITLE, suite.NOTES, device, rows)
        print(f"\n{suite.TITLE}\n\n{table(rows)}\n\nwritten to {path}")
        met = met and all(row.met for row in rows)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
