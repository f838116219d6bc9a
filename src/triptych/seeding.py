"""Random numbers as pure functions of what they are for.

Nothing here depends on how often, in which order or in which process it is called, so a resumed
run and a run with other workers draw the same numbers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b

import numpy as np
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2^63) from named parts, the same on every machine and Python version.

    Every part counts with its type and length: ``("ab", "c")``, ``("a", "bc")``, ``(1,)`` and
    ``("1",)`` give unrelated seeds.
    """
    hasher = blake2b(digest_size=8)
    for part in parts:
        text = f"{type(part).__name__}:{part}".encode()
        hasher.update(len(text).to_bytes(8, "little") + text)
    return int.from_bytes(hasher.digest(), "little") >> 1


def uniforms(
    seed: int, epochs: Sequence[int], indices: Sequence[int], count: int
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """``count`` numbers in [0, 1) for each pair of epoch and index, shape (len(indices), count).

    The generator is SplitMix64 (Steele, Lea, Flood 2014) run as a counter: row i depends on
    (seed, epochs[i], indices[i]) alone.
    """
    starts = {epoch: derive_seed(seed, "uniforms", epoch) for epoch in set(epochs)}
    start = np.array([starts[epoch] for epoch in epochs], dtype=np.uint64)
    stream = _mix(start + np.asarray(indices, dtype=np.uint64) * _GOLDEN)
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix(stream[:, None] + steps[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


@contextmanager
def forked_rng(seed: int) -> Iterator[None]:
    """Seed torch (CPU), NumPy and ``random`` inside the block, and put them back after it."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    # torch.manual_seed would also reseed every accelerator.
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
