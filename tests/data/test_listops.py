"""ListOps: worked examples, the distribution, the released files, padded batches."""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from triptych.data.errors import DataError
from triptych.data.listops import (
    VOCABULARY,
    ListOpsSpec,
    _stream,
    evaluate,
    generate,
    to_text,
    tokenize,
)
from triptych.data.listops_files import read_listops
from triptych.data.loading import make_loader
from triptych.data.samples import SampleKey
from triptych.data.sequences import load_listops

SHORT = ListOpsSpec(min_length=20, max_length=60)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("[MIN 4 2 9 ]", 2),
        ("[MAX 4 2 9 ]", 9),
        ("[MED 4 2 9 ]", 4),
        ("[MED 1 2 ]", 1),
        ("[MED 9 2 8 5 ]", 6),
        ("[SM 9 9 5 ]", 3),
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),
        ("[SM [SM [SM 8 7 ] 6 ] [MED 1 9 3 ] ]", 4),
    ],
)
def test_worked_examples(text, value):
    assert evaluate(tokenize(text)) == value
    assert to_text(list(tokenize(text))) == text


def test_parentheses_of_the_released_files_say_nothing():
    released = "( ( ( ( [MED 4 ) 2 ) ( ( ( [MIN 7 ) 3 ) ] ) ) ] )"
    assert to_text(list(tokenize(released))) == "[MED 4 2 [MIN 7 3 ] ]"
    assert evaluate(tokenize(released)) == 3


def test_generated_expressions_have_their_answers_and_lengths():
    made = generate(SHORT, 150, seed=3)
    assert len(made) == 150
    texts = set()
    for index in range(150):
        tokens = made[index]
        assert evaluate(tokens.tolist()) == made.answers[index]
        assert 20 < len(tokens) < 60
        assert _depth(tokens.tolist()) <= 10
        texts.add(tokens.tobytes())
    assert len(texts) == 150
    assert made.lengths().sum() == len(made.tokens)


def _depth(tokens):
    depth = deepest = 0
    for token in tokens:
        depth += (2 <= token <= 5) - (token == 6)
        deepest = max(deepest, depth)
    return deepest + 1


def test_the_distribution_is_the_published_grammar():
    """Operators, numbers of arguments and digits uniform; a node branches in one of four cases."""
    count = 4000
    trees = [
        tokens for tokens, _ in islice(_stream(ListOpsSpec(0, 10**6, 3, 4), seed=1), 4 * count)
    ]
    roots = [tree for tree in trees if len(tree) > 1]
    assert len(roots) / len(trees) == pytest.approx(0.25, abs=0.02)
    operators = Counter(tree[0] for tree in roots)
    children = [_children(tree) for tree in roots]
    arguments = Counter(map(len, children))
    for counts, values in ((operators, range(2, 6)), (arguments, range(2, 5))):
        assert set(counts) == set(values)
        for value in values:
            assert counts[value] / len(roots) == pytest.approx(1 / len(values), abs=0.04)
    below = [child for some in children for child in some]
    branching = sum(len(child) > 1 for child in below) / len(below)
    assert branching == pytest.approx(0.25, abs=0.02)
    digits = Counter(child[0] for child in below if len(child) == 1)
    leaves = sum(digits.values())
    assert all(digits[7 + d] / leaves == pytest.approx(0.1, abs=0.02) for d in range(10))


def _children(tree):
    """The parts of an expression at its first level."""
    parts, depth = [], 0
    for token in tree[1:-1]:
        if depth == 0:
            parts.append([])
        parts[-1].append(token)
        depth += (2 <= token <= 5) - (token == 6)
    return parts


def test_published_setting():
    made = generate(ListOpsSpec(), 30, seed=0)
    lengths = made.lengths()
    assert lengths.min() > 500
    assert lengths.max() < 2000
    assert 700 < np.median(lengths) < 1350


def test_more_expressions_begin_with_the_same_ones():
    few, many = generate(SHORT, 20, seed=5), generate(SHORT, 40, seed=5)
    assert np.array_equal(few.tokens, many.tokens[: len(few.tokens)])
    assert np.array_equal(few.answers, many.answers[:20])
    assert not np.array_equal(few.answers, generate(SHORT, 20, seed=6).answers)


def test_batches_are_padded_behind_a_class_token():
    data = load_listops(SHORT, name="listops", train=12, test=5)
    assert (data.name, data.num_classes, len(data.train), len(data.test)) == ("listops", 10, 12, 5)
    tokens, labels, indices = data.train.__getitems__([SampleKey(0, 7), SampleKey(3, 2)])
    assert tokens.shape == (2, 60)
    assert tokens.dtype == torch.int64
    assert indices.tolist() == [7, 2]
    for row, label, index in zip(tokens, labels, indices, strict=True):
        expression = data.train.expressions[int(index)]
        assert row[0] == VOCABULARY.index("<cls>")
        assert row[1 : 1 + len(expression)].tolist() == expression.tolist()
        assert (row[1 + len(expression) :] == 0).all()
        assert evaluate(expression.tolist()) == label
    assert torch.equal(data.train[SampleKey(0, 7)].tokens[0], tokens[0])


def test_test_expressions_do_not_depend_on_how_many_are_trained_on():
    few, many = (load_listops(SHORT, name="x", train=n, test=6) for n in (4, 30))
    assert np.array_equal(few.test.expressions.tokens, many.test.expressions.tokens)
    trained = {many.train.expressions[i].tobytes() for i in range(30)}
    assert not trained & {many.test.expressions[i].tobytes() for i in range(6)}


def test_commonest_share_is_the_score_of_one_answer():
    data = load_listops(SHORT, name="x", train=60, test=40)
    best = np.bincount(data.train.expressions.answers).argmax()
    assert data.commonest_share == (data.test.expressions.answers == best).mean()


def test_a_loader_serves_every_sequence_once():
    data = load_listops(SHORT, name="x", train=10, test=3)
    loader = make_loader(data.train, batch_size=4, seed=1, shuffle=True)
    seen = torch.cat([indices for _, _, indices in loader])
    assert sorted(seen.tolist()) == list(range(10))


def released(folder: Path, *lines: str) -> Path:
    path = folder / "basic_train.tsv"
    path.write_text("\n".join(["Source\tTarget", *lines]) + "\n")
    return path


def test_released_files(tmp_path):
    lines = ["( ( ( [MAX 4 ) 2 ) ] )\t4", "[SM 9 9 ]\t8", "3\t3"]
    path = released(tmp_path, *lines)
    read = read_listops(path)
    assert [to_text(read[i]) for i in range(3)] == ["[MAX 4 2 ]", "[SM 9 9 ]", "3"]
    assert read.answers.tolist() == [4, 8, 3]
    assert len(read_listops(path, count=2)) == 2
    (tmp_path / "basic_test.tsv").write_text(path.read_text())
    data = load_listops(ListOpsSpec(0, 5), name="listops", train=3, test=1, root=tmp_path)
    whole = data.train.__getitems__([SampleKey(0, 0), SampleKey(0, 2)]).tokens
    assert whole.tolist() == [[1, 3, 11, 9, 6], [1, 10, 0, 0, 0]]
    assert len(data.test) == 1


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("[MAX 4 2 ]", "expected 2 columns, an expression and its answer, found 1"),
        ("[MAX 4 x ]\t4", "'x' is no token of ListOps; legal are [MIN [MAX [MED [SM ] 0 1 2"),
        ("[MAX 4 2 ]\tten", "the answer must be a digit, found 'ten'"),
        ("[MAX 4 2 ]\t2", "the answer is 2, but the expression is worth 4"),
        ("[MAX 4 2\t4", "expected one whole expression, found 1 open brackets and 2 values"),
        ("[MAX ] 4\t4", "a bracket closes nothing, or an operator without arguments"),
        ("4 2\t4", "expected one whole expression, found 0 open brackets and 2 values"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, complaint):
    path = released(tmp_path, "7\t7", line)
    with pytest.raises(DataError, match=re.escape(f"{path}, line 3: {complaint}")):
        read_listops(path)


def test_missing_short_and_headless_files_are_named(tmp_path):
    with pytest.raises(DataError, match=re.escape(f"{tmp_path / 'basic_train.tsv'} is missing; ")):
        load_listops(SHORT, name="x", train=1, test=1, root=tmp_path)
    path = released(tmp_path, "7\t7")
    with pytest.raises(DataError, match=r"holds 1 examples, fewer than the 2 wanted$"):
        read_listops(path, count=2)
    path.write_text("7\t7\n")
    with pytest.raises(DataError, match=r"line 1: expected the header Source<TAB>Target$"):
        read_listops(path)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ((50, 51, 10, 10), "no length lies between min_length=50 and max_length=51"),
        (
            (50, 200, 2, 10),
            "min_length=50 is out of reach: max_args=10 and max_depth=2 give at most 12 tokens",
        ),
        (
            (0, 20, 1, 10),
            "an operator needs max_args >= 2 and max_depth >= 2, got max_args=10 and max_depth=1",
        ),
    ],
)
def test_impossible_distributions(values, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        ListOpsSpec(*values)
