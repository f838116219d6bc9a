"""Token sequences served as padded batches.

Shapes: B batch, N tokens of a padded sequence, S sequences of the data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from triptych.data.listops import CLS, DIGITS, PAD, Expressions, ListOpsSpec, generate
from triptych.data.listops_files import TEST, TRAIN, read_listops
from triptych.data.samples import SampleKey

# Of the data, never the run's: all runs are tested on the same expressions.
DATA_SEED = 0


class SequenceBatch(NamedTuple):
    """Token ids (B, N), padded with 0, labels (B,) and data set indices (B,), all int64."""

    tokens: Tensor
    labels: Tensor
    indices: Tensor


class ListOpsDataset(Dataset[SequenceBatch]):
    """Expressions behind a class token, padded to ``length``; longer ones are cut off there.

    ``labels`` is (S,) int64, the answers.
    """

    def __init__(self, expressions: Expressions, length: int) -> None:
        self.expressions, self.length = expressions, length
        self.labels = torch.from_numpy(expressions.answers)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: Sequence[SampleKey]) -> SequenceBatch:
        """The sequences of ``keys``, in their order; the epoch changes nothing."""
        indices_B = torch.tensor([index for _, index in keys], dtype=torch.int64)
        tokens_BN = torch.full((len(keys), self.length), PAD, dtype=torch.int64)
        tokens_BN[:, 0] = CLS
        for row, (_, index) in zip(tokens_BN, keys, strict=True):
            expression = torch.tensor(self.expressions[index][: self.length - 1])
            row[1 : 1 + len(expression)] = expression
        return SequenceBatch(tokens_BN, self.labels[indices_B], indices_B)

    def __getitem__(self, key: SampleKey) -> SequenceBatch:
        """One sequence, still with a batch dimension."""
        return self.__getitems__([key])


@dataclass(frozen=True)
class SequenceData:
    """Training and test sequences of one data set."""

    name: str
    train: ListOpsDataset
    test: ListOpsDataset
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def commonest_share(self) -> float:
        """Accuracy on the test sequences of the answer that is commonest in training."""
        commonest = self.train.labels.bincount().argmax()
        return float((self.test.labels == commonest).double().mean())


def load_listops(
    spec: ListOpsSpec, *, name: str, train: int, test: int, root: Path | None = None
) -> SequenceData:
    """``train`` and ``test`` expressions, generated, or read from the released files in ``root``.

    Generated test expressions come first in the stream, so they do not depend on ``train``; all
    differ.

    Raises:
        DataError: a file is missing or damaged, or holds too few examples.
    """
    if root is None:
        whole = generate(spec, test + train, DATA_SEED)
        parts = [_part(whole, test, test + train), _part(whole, 0, test)]
    else:
        parts = [
            read_listops(root / TRAIN, count=train),
            read_listops(root / TEST, count=test),
        ]
    datasets = [ListOpsDataset(part, spec.max_length) for part in parts]
    return SequenceData(name, datasets[0], datasets[1], DIGITS)


def _part(whole: Expressions, begin: int, end: int) -> Expressions:
    starts = whole.starts[begin : end + 1]
    tokens = whole.tokens[starts[0] : starts[-1]]
    return Expressions(tokens, starts - starts[0], whole.answers[begin:end])
