"""ListOps (Nangia & Bowman 2018) as in Long Range Arena: nested list operations, ten answers.

An expression is a digit, or an operator with its arguments in brackets: MIN, MAX, MED (median,
truncated to an integer) and SM (sum modulo 10), written ``[MED 4 [SM 7 8 ] 9 ]``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triptych.seeding import derive_seed

# A node that may still branch does so with this probability.
BRANCHING = 0.25
DIGITS = tuple("0123456789")
VOCABULARY = ("<pad>", "<cls>", "[MIN", "[MAX", "[MED", "[SM", "]", *DIGITS)
PAD, CLS, FIRST_OPERATOR, CLOSE, ZERO = 0, 1, 2, 6, 7
TOKEN_IDS = {token: index for index, token in enumerate(VOCABULARY) if index > CLS}

Tokens = NDArray[np.uint8]


def median(values: Sequence[int]) -> int:
    """The middle value; the truncated mean of the two middle ones of an even number."""
    ranked, middle = sorted(values), len(values) // 2
    if len(ranked) % 2:
        return ranked[middle]
    return (ranked[middle - 1] + ranked[middle]) // 2


def sum_modulo(values: Sequence[int]) -> int:
    return sum(values) % 10


# In the order of their tokens.
OPERATIONS: tuple[Callable[[Sequence[int]], int], ...] = (min, max, median, sum_modulo)


@dataclass(frozen=True)
class Expressions:
    """Expressions of different length, one behind the other, and their answers (N,) 0 … 9."""

    tokens: Tokens
    starts: NDArray[np.int64]
    answers: NDArray[np.int64]

    @classmethod
    def of(cls, expressions: Sequence[bytes], answers: Sequence[int]) -> Expressions:
        """From token ids as bytes."""
        ends = np.cumsum([len(expression) for expression in expressions], dtype=np.int64)
        tokens = np.frombuffer(b"".join(expressions), dtype=np.uint8)
        starts = np.concatenate((np.zeros(1, np.int64), ends))
        return cls(tokens, starts, np.array(answers, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, index: int) -> Tokens:
        return self.tokens[self.starts[index] : self.starts[index + 1]]

    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.starts)


@dataclass(frozen=True)
class ListOpsSpec:
    """The distribution of expressions; the defaults are the published ones.

    Kept are expressions with min_length < length < max_length, where an operator counts as two
    (opening symbol and closing bracket) and a digit as one.

    Raises:
        ValueError: no such expression exists.
    """

    min_length: int = 500
    max_length: int = 2000
    max_depth: int = 10
    max_args: int = 10

    def __post_init__(self) -> None:
        if self.max_args < 2 or self.max_depth < 2:
            raise ValueError(
                f"an operator needs max_args >= 2 and max_depth >= 2, got max_args="
                f"{self.max_args} and max_depth={self.max_depth}"
            )
        longest = 2 * _operators(self) + self.max_args ** (self.max_depth - 1)
        if not (self.min_length >= 0 and self.min_length + 1 < self.max_length):
            raise ValueError(
                f"no length lies between min_length={self.min_length} and "
                f"max_length={self.max_length}"
            )
        if self.min_length >= longest:
            raise ValueError(
                f"min_length={self.min_length} is out of reach: max_args={self.max_args} and "
                f"max_depth={self.max_depth} give at most {longest} tokens"
            )


def _operators(spec: ListOpsSpec) -> int:
    """Operators of the largest tree."""
    return sum(spec.max_args**level for level in range(spec.max_depth - 1))


def generate(spec: ListOpsSpec, count: int, seed: int) -> Expressions:
    """The first ``count`` different expressions of the stream that ``seed`` starts.

    More of them with the same seed begin with the same ones.
    """
    expressions: list[bytes] = []
    answers: list[int] = []
    seen: set[bytes] = set()
    for expression, answer in _stream(spec, seed):
        if expression in seen:
            continue
        seen.add(expression)
        expressions.append(expression)
        answers.append(answer)
        if len(answers) == count:
            break
    return Expressions.of(expressions, answers)


def _stream(spec: ListOpsSpec, seed: int) -> Iterator[tuple[bytes, int]]:
    uniform = random.Random(derive_seed("listops", seed)).random
    while True:
        tokens = bytearray()
        answer = _grow(uniform, tokens, 1, spec)
        if answer is not None and len(tokens) > spec.min_length:
            yield bytes(tokens), answer


def _grow(
    uniform: Callable[[], float], tokens: bytearray, depth: int, spec: ListOpsSpec
) -> int | None:
    """Append a random expression and return its value; None once it is too long to be kept."""
    if len(tokens) >= spec.max_length:
        return None
    if depth == spec.max_depth or uniform() >= BRANCHING:
        digit = int(10 * uniform())
        tokens.append(ZERO + digit)
        return digit if len(tokens) < spec.max_length else None
    operator = int(len(OPERATIONS) * uniform())
    tokens.append(FIRST_OPERATOR + operator)
    values = []
    for _ in range(2 + int((spec.max_args - 1) * uniform())):
        value = _grow(uniform, tokens, depth + 1, spec)
        if value is None:
            return None
        values.append(value)
    tokens.append(CLOSE)
    return OPERATIONS[operator](values) if len(tokens) < spec.max_length else None


def tokenize(text: str) -> bytes:
    """Token ids of an expression; its parentheses, which say nothing, are dropped.

    Raises:
        ValueError: a word is no token.
    """
    words = text.replace("(", " ").replace(")", " ").split()
    try:
        return bytes(TOKEN_IDS[word] for word in words)
    except KeyError as error:
        known = " ".join(VOCABULARY[FIRST_OPERATOR:])
        raise ValueError(f"{error.args[0]!r} is no token of ListOps; legal are {known}") from None


def to_text(tokens: Sequence[int] | Tokens) -> str:
    """An expression without parentheses."""
    return " ".join(VOCABULARY[token] for token in tokens)


def evaluate(tokens: Sequence[int] | bytes) -> int:
    """The value of an expression.

    Raises:
        ValueError: it is not just one whole expression.
    """
    waiting: list[tuple[int, list[int]]] = []
    values: list[int] = []
    for token in tokens:
        if token >= ZERO:
            values.append(token - ZERO)
        elif token != CLOSE:
            waiting.append((token, values))
            values = []
        else:
            if not waiting or not values:
                raise ValueError("a bracket closes nothing, or an operator without arguments")
            operator, outer = waiting.pop()
            outer.append(OPERATIONS[operator - FIRST_OPERATOR](values))
            values = outer
    if waiting or len(values) != 1:
        raise ValueError(
            f"expected one whole expression, found {len(waiting)} open brackets and {len(values)} "
            "values"
        )
    return values[0]
