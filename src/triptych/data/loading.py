"""Batches in an order that a resumed run finds again.

The order of the samples is a pure function of (seed, epoch), and the place in it is held here,
not by whoever trains: :class:`ResumableLoader` knows the epoch and the batch it will give next.
Lightning 2.6 creates a loader's iterator before it tells the sampler the epoch, may create it
twice, and restores nothing at all at the end of an epoch; so there is no ``set_epoch`` here, an
iterator that nobody has read from changes nothing, and the position is set explicitly.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from triptych.data.ahead import ahead
from triptych.data.detection_samples import DetectionSamples
from triptych.data.samples import ImageDataset, SampleKey
from triptych.data.sequences import ListOpsDataset
from triptych.seeding import derive_seed

MIXED_BLOCKS = 16


class SeededBatchSampler(Sampler[list[SampleKey]]):
    """Lists of sample keys; the order is a pure function of (seed, epoch).

    ``batch_size`` is the size of the whole batch over all ``world_size`` processes: process
    ``rank`` gets its contiguous part of each, in ``pieces`` lists that follow each other. So an
    update sees the same samples whatever the number of processes and pieces. The last batch, if
    it is kept, is shared out as evenly as it goes. ``position`` is the (epoch, list) at which the
    next iteration starts.

    With ``repeats`` r an epoch is as long as without, of an r-th of the samples, each r times in
    one batch (but at its ends) and far apart in it (repeated augmentation, Hoffer et al. 2020).
    Copy c of a sample in epoch e has the key epoch e · r + c, so that each is augmented in its
    own way.

    Args:
        num_samples: size of the data set.
        batch_size: samples in a batch, over all processes.
        seed: of the order; of no account without ``shuffle``.
        drop_last: leave the last batch out where it is smaller than the others.
        max_batches: end an epoch after that many batches.
        pieces: lists in which a process gets its part of a batch (gradient accumulation).
        repeats: copies of a sample in an epoch that shows it.
        block: where not 0, samples are read in blocks of so many neighbours, which come in random
            order; the samples of sixteen blocks at a time are mixed.

    Raises:
        ValueError: an argument is out of range, the batch cannot be shared out, or an epoch
            would have no batch.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        max_batches: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        pieces: int = 1,
        repeats: int = 1,
        block: int = 0,
    ) -> None:
        _check(num_samples, batch_size, drop_last, max_batches, rank, world_size, pieces)
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.rank, self.world_size, self.pieces = rank, world_size, pieces
        self.repeats, self.block = repeats, block
        batches = num_samples // batch_size if drop_last else -(-num_samples // batch_size)
        batches = batches if max_batches is None else min(batches, max_batches)
        self.num_batches = batches * pieces
        self.position = (0, 0)

    def __len__(self) -> int:
        """Lists of keys in a whole epoch, wherever it is gone on with."""
        return self.num_batches

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Make the next iteration start at ``batch`` of ``epoch``; later ones follow on.

        Raises:
            ValueError: there is no such batch. ``batch`` = len(self) means the next epoch.
        """
        if epoch < 0 or not 0 <= batch <= self.num_batches:
            raise ValueError(
                f"there is no batch {batch} of epoch {epoch}; an epoch has {self.num_batches} "
                f"batches, and both count from 0"
            )
        self.position = (epoch + 1, 0) if batch == self.num_batches else (epoch, batch)

    def order(self, epoch: int) -> np.ndarray:
        """The samples of ``epoch`` in their order over all processes, copies one by one."""
        samples = np.arange(self.num_samples)
        if self.shuffle:
            generator = np.random.default_rng(derive_seed("order", self.seed, epoch))
            samples = _shuffled(self.num_samples, self.block, generator)
        return np.repeat(samples, self.repeats)[: self.num_samples]

    def __iter__(self) -> Iterator[list[SampleKey]]:
        # A generator, so that an iterator that is never read changes nothing: a DataLoader with
        # workers makes two and reads one.
        epoch, first = self.position
        self.position = (epoch + 1, 0)
        order = self.order(epoch)
        for number in range(first, self.num_batches):
            batch, piece = divmod(number, self.pieces)
            places = np.arange(batch * self.batch_size, (batch + 1) * self.batch_size)
            places = places[places < self.num_samples]
            # All first copies, then all second ones: neighbours are never of one image.
            places = places[np.argsort(places % self.repeats, kind="stable")]
            parts = np.array_split(places, self.world_size * self.pieces)
            part = parts[self.rank * self.pieces + piece]
            yield [
                SampleKey(epoch * self.repeats + int(place % self.repeats), int(order[place]))
                for place in part
            ]


def _shuffled(count: int, block: int, generator: np.random.Generator) -> np.ndarray:
    if block == 0:
        return generator.permutation(count)
    starts = generator.permutation(np.arange(0, count, block))
    mixed = []
    for first in range(0, len(starts), MIXED_BLOCKS):
        some = starts[first : first + MIXED_BLOCKS]
        samples = np.concatenate([np.arange(start, min(start + block, count)) for start in some])
        mixed.append(generator.permutation(samples))
    return np.concatenate(mixed)


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that knows which batch comes next: ``position`` is (epoch, batch).

    A batch counts as seen once it is handed out, however many the workers have prepared. Every
    iteration is one epoch, the next one the epoch after it, also when it was broken off; only
    after ``set_position`` or ``load_state_dict`` does an iteration start within an epoch.
    ``state_dict`` holds the position in plain ints, which a weights-only checkpoint accepts.
    ``waited`` are the seconds that whoever iterates has spent waiting for batches so far.
    """

    batch_sampler: SeededBatchSampler
    position: tuple[int, int] = (0, 0)
    _position_was_set: bool = False
    waited: float = 0.0

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Make the next iteration start at ``batch`` of ``epoch``; raises as the sampler does."""
        self.batch_sampler.set_position(epoch, batch)
        self.position = self.batch_sampler.position
        self._position_was_set = True

    def state_dict(self) -> dict[str, int]:
        """The position after the last batch that was handed out, in whole batches."""
        epoch, batch = self.position
        return {"epoch": epoch, "batch": batch // self.batch_sampler.pieces}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state`` was taken, also if batches now come in other pieces."""
        self.set_position(state["epoch"], state["batch"] * self.batch_sampler.pieces)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: nothing happens, and no worker starts, before the first batch is asked for.
        epoch, first = self.position
        if first and not self._position_was_set:
            epoch, first = epoch + 1, 0
        self.batch_sampler.set_position(epoch, first)
        batches: Iterator[Any] = super().__iter__()
        if self.num_workers:
            batches = ahead(batches)
        for number, batch in enumerate(self._timed(batches), start=first + 1):
            self._position_was_set = False
            self.position = (epoch, number) if number < len(self) else (epoch + 1, 0)
            yield batch

    def _timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch


def make_loader(
    dataset: ImageDataset | ListOpsDataset | DetectionSamples,
    *,
    batch_size: int,
    seed: int = 0,
    shuffle: bool = False,
    drop_last: bool = False,
    max_batches: int | None = None,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    pieces: int = 1,
    repeats: int = 1,
    block: int = 0,
    pin_memory: bool = False,
) -> ResumableLoader:
    """A loader of whole batches of ``dataset`` in the order of a :class:`SeededBatchSampler`.

    Batches are the same whatever ``num_workers``, and global generators are not touched.

    Raises:
        ValueError: as the sampler does, or ``num_workers`` is negative.
    """
    if num_workers < 0:
        raise ValueError(f"num_workers must be at least 0, got {num_workers}")
    sampler = SeededBatchSampler(
        len(dataset),
        batch_size,
        seed,
        shuffle=shuffle,
        drop_last=drop_last,
        max_batches=max_batches,
        rank=rank,
        world_size=world_size,
        pieces=pieces,
        repeats=repeats,
        block=block,
    )
    return ResumableLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        # Otherwise a DataLoader draws its workers' seeds from the global generator.
        generator=torch.Generator().manual_seed(derive_seed("workers", seed)),
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def _check(
    num_samples: int,
    batch_size: int,
    drop_last: bool,
    max_batches: int | None,
    rank: int,
    world_size: int,
    pieces: int,
) -> None:
    for name, value in (("num_samples", num_samples), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if max_batches is not None and max_batches < 1:
        raise ValueError(f"max_batches must be at least 1, got {max_batches}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in 0 … world_size − 1, got {rank} of {world_size}")
    shares = world_size * pieces
    if batch_size % shares:
        raise ValueError(
            f"a batch of {batch_size} cannot be shared out evenly to {world_size} processes"
            + (f" in {pieces} pieces each" if pieces > 1 else "")
        )
    if drop_last and num_samples < batch_size:
        raise ValueError(
            f"{num_samples} samples give no whole batch of {batch_size}; the largest legal "
            f"batch_size with drop_last is {num_samples}"
        )
    rest = num_samples % batch_size
    if not drop_last and 0 < rest < shares:
        raise ValueError(
            f"the last batch has {rest} of {num_samples} samples, too few for {world_size} "
            f"processes; use drop_last or another batch_size than {batch_size}"
        )
