"""Peak memory of a training step.

On CUDA the caching allocator keeps count. On the CPU the operating system does: the peak of the
resident set (VmHWM) is reset through /proc/self/clear_refs before the step. Three habits of the C
library would spoil that, as its heap remembers what the process did before:

* freed memory is kept and used again without being seen: it is given back first (malloc_trim);
* tensors below 32 MiB share a heap with gaps that cannot all be used, which can double the peak:
  meanwhile tensors from 64 KiB on are mapped one by one (mallopt);
* gaps that are there already are used all the same: the steps run in a thread of their own,
  which glibc gives another heap (unless MALLOC_ARENA_MAX=1).

Both numbers are the growth over a step: gradients, optimizer state, activations and work space,
without the weights and the batch, which are there before.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import re
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from triptych.measure.candidate import Candidate, TrainingStep, preserved
from triptych.measure.counts import MIB

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"

# Parameters of mallopt(3), and values: 32 MiB and twice that are where glibc itself arrives.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MAPPED_FROM = 64 * 2**10
_USUAL_MAPPED_FROM, _USUAL_TRIM = 32 * 2**20, 64 * 2**20


def can_measure_peak(device: torch.device) -> bool:
    """Whether peak memory can be measured: on CUDA, and on Linux with glibc."""
    if device.type == "cuda":
        return True
    glibc = platform.libc_ver()[0] == "glibc"
    return device.type == "cpu" and glibc and os.access(_CLEAR, os.W_OK)


def peak_memory(candidate: Candidate, repeats: int = 3) -> float:
    """MiB by which the first step of a fresh optimizer raises memory, median of ``repeats``.

    A step before the first makes sure that libraries have set themselves up. On the CPU the loss
    runs in another thread, where an autocast of the caller does not reach: it belongs in the loss.

    Raises:
        RuntimeError: the platform has no way to tell; see :func:`can_measure_peak`.
    """
    device = candidate.device
    if not can_measure_peak(device):
        raise RuntimeError(
            f"peak memory on {device.type} cannot be measured here; it needs CUDA, or Linux with "
            f"glibc and a writable {_CLEAR}"
        )
    with preserved(candidate.model):
        if device.type == "cuda":
            return _median_growth(candidate, _cuda_growth, repeats)
        with _separate_mappings(), ThreadPoolExecutor(max_workers=1) as thread:
            return thread.submit(_median_growth, candidate, _resident_growth, repeats).result()


def _median_growth(
    candidate: Candidate, growth: Callable[[Candidate], float], repeats: int
) -> float:
    TrainingStep(candidate)()
    _drop_gradients(candidate)
    return statistics.median(growth(candidate) for _ in range(repeats))


def _drop_gradients(candidate: Candidate) -> None:
    candidate.model.zero_grad(set_to_none=True)


def _cuda_growth(candidate: Candidate) -> float:
    step = TrainingStep(candidate)
    gc.collect()
    torch.cuda.synchronize(candidate.device)
    before = torch.cuda.memory_allocated(candidate.device)
    torch.cuda.reset_peak_memory_stats(candidate.device)
    step()
    torch.cuda.synchronize(candidate.device)
    peak = torch.cuda.max_memory_allocated(candidate.device)
    _drop_gradients(candidate)
    return (peak - before) / MIB


def _resident_growth(candidate: Candidate) -> float:
    step = TrainingStep(candidate)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _status_mib("VmRSS")
    _CLEAR.write_text(_RESET_PEAK)
    step()
    peak = _status_mib("VmHWM")
    _drop_gradients(candidate)
    return peak - before


@contextmanager
def _separate_mappings() -> Iterator[None]:
    """Let malloc map and unmap larger pieces one by one, then as it does in a long run."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM)
    try:
        yield
    finally:
        libc.mallopt(_M_MMAP_THRESHOLD, _USUAL_MAPPED_FROM)
        libc.mallopt(_M_TRIM_THRESHOLD, _USUAL_TRIM)


def _status_mib(field: str) -> float:
    found = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{_STATUS} has no {field}")
    return int(found[1]) / 1024
