"""The released files of Long ListOps: tab-separated, a header line, one example a line."""

from __future__ import annotations

from pathlib import Path

from triptych.data.errors import DataError
from triptych.data.listops import Expressions, evaluate, tokenize

HEADER = ["Source", "Target"]
TRAIN, TEST = "basic_train.tsv", "basic_test.tsv"


def read_listops(path: Path, *, count: int | None = None) -> Expressions:
    """The first ``count`` examples of a file, all if None.

    Every expression is worked out and compared with its answer.

    Raises:
        DataError: the file is missing, a line is damaged, or there are fewer examples.
    """
    expressions: list[bytes] = []
    answers: list[int] = []
    try:
        with path.open(encoding="utf-8") as lines:
            if next(lines, "").split() != HEADER:
                raise DataError(f"{path}, line 1: expected the header Source<TAB>Target")
            for number, line in enumerate(lines, start=2):
                if len(answers) == count:
                    break
                try:
                    expression, answer = _example(line)
                except ValueError as error:
                    raise DataError(f"{path}, line {number}: {error}") from None
                expressions.append(expression)
                answers.append(answer)
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing; data.root must be the folder of the released ListOps files, "
            f"which holds {TRAIN} and {TEST}"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is damaged: it is not text ({error.reason})") from None
    if not answers or (count is not None and len(answers) < count):
        raise DataError(f"{path} holds {len(answers)} examples, fewer than the {count or 1} wanted")
    return Expressions.of(expressions, answers)


def _example(line: str) -> tuple[bytes, int]:
    columns = line.rstrip("\r\n").split("\t")
    if len(columns) != 2:
        raise ValueError(f"expected 2 columns, an expression and its answer, found {len(columns)}")
    expression, answer = tokenize(columns[0]), columns[1].strip()
    if answer not in "0123456789" or len(answer) != 1:
        raise ValueError(f"the answer must be a digit, found {answer!r}")
    value = evaluate(expression)
    if value != int(answer):
        raise ValueError(f"the answer is {answer}, but the expression is worth {value}")
    return expression, int(answer)
