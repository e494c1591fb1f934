"""ListOps expressions: their grammar, their values, their distribution, and what they depend on."""

from collections import Counter

import numpy as np
import pytest
import torch

from datamodules import ListOps, Protocol, examples
from datamodules.files import PreparedDataError
from datamodules.generate import generate
from datamodules.listops_grammar import CLOSE, FIRST_DIGIT, MIN, TOKENS, draw_expression, evaluate, permute_arguments

LRA = {"min_length": 500, "max_length": 2000, "max_depth": 10, "max_args": 10}
SHORT = {"min_length": 30, "max_length": 90, "max_depth": 5, "max_args": 4}
SIZES = {"train_size": 60, "val_size": 50, "test_size": 40}


def ids(text: str) -> np.ndarray:
    return np.array([TOKENS.index(token) for token in text.split()])


def shape_of(tokens: np.ndarray) -> tuple[int, set[int]]:
    """Levels of operators below one another, and all numbers of arguments that occur."""
    deepest, counts, open_counts = 0, set(), [0]
    for token in tokens:
        if token == CLOSE:
            counts.add(open_counts.pop())
            continue
        open_counts[-1] += 1
        if token >= MIN:
            open_counts.append(0)
            deepest = max(deepest, len(open_counts) - 1)
    assert open_counts == [1], "one whole expression"
    return deepest, counts


@pytest.fixture(scope="module")
def expressions() -> list[tuple[np.ndarray, int]]:
    return [draw_expression(0, index, **LRA) for index in range(2000)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("[MIN 4 2 9 ]", 2),
        ("[MAX 4 2 9 ]", 9),
        ("[MED 9 1 5 ]", 5),
        ("[MED 8 1 4 5 ]", 4),  # 4.5 is cut to 4, as LRA's int(median) does
        ("[MED 3 8 ]", 5),
        ("[SM 9 9 5 ]", 3),
        ("[SM 5 5 ]", 0),
        ("[MAX 2 [MIN 8 [SM 4 9 ] 7 ] 1 ]", 3),
        ("[SM [MED 1 2 ] [MAX 0 6 ] [MIN 9 9 ] ]", 6),
        ("[MIN [MAX [MED 7 3 5 ] 2 ] 6 ]", 5),
    ],
)
def test_values_worked_out_by_hand(text, value):
    assert evaluate(ids(text)) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "ends too early"),
        ("]", "token 15 at 0 cannot start an expression"),
        ("[MAX <pad> ]", "token 0 at 1 cannot start an expression"),
        ("[MIN ]", "operator at 0 has no arguments"),
        ("[MAX 3 [SM ] ]", "operator at 2 has no arguments"),
        ("[MAX 3 4", "operator at 0 .* not closed"),
        ("[MAX 3 [MIN 4 5 ]", "operator at 0 .* not closed"),
        ("[MAX 3 4 ] 5 ]", "2 tokens follow"),
    ],
)
def test_malformed_expressions_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        evaluate(ids(text))


def test_compiled_values_agree_with_plain_ones(expressions):
    assert all(evaluate(tokens) == value for tokens, value in expressions[:150])
    for index in range(1500):  # short ones, whose operators have few arguments, among them even numbers
        tokens, value = draw_expression(1, index, **SHORT)
        assert evaluate(tokens) == value


def test_expressions_keep_the_grammar_s_bounds(expressions):
    lengths = [len(tokens) for tokens, _ in expressions]
    assert min(lengths) > 500
    assert max(lengths) < 2000
    depths, counts = zip(*(shape_of(tokens) for tokens, _ in expressions[:300]), strict=True)
    assert max(depths) == 9, "a tree of ten levels: nine of operators and one of digits"
    assert set().union(*counts) == set(range(2, 11))
    lengths, depths = set(), set()
    for index in range(3000):
        tokens, _ = draw_expression(2, index, min_length=4, max_length=9, max_depth=3, max_args=4)
        lengths.add(len(tokens))
        depths.add(shape_of(tokens)[0])
    assert lengths == {5, 6, 7, 8}, "both bounds exclusive, and all between them reached"
    assert depths == {1, 2}


def test_distribution_is_that_of_long_range_arena(expressions):
    """Against LRA's own generator: mean length 1,041, standard deviation 392; 16.6 % of zeros. Within 4 errors."""
    lengths = np.array([len(tokens) for tokens, _ in expressions])
    assert abs(lengths.mean() - 1041) < 4 * 392 / np.sqrt(2000)
    zeros = np.mean([value == 0 for _, value in expressions])
    assert abs(zeros - 0.166) < 4 * np.sqrt(0.166 * 0.834 / 2000)
    tokens = np.bincount(np.concatenate([tokens for tokens, _ in expressions]), minlength=len(TOKENS))
    assert tokens[0] == 0, "no padding inside"
    for group in (tokens[MIN:CLOSE], tokens[FIRST_DIGIT:MIN]):
        expected = group.sum() / len(group)
        assert (abs(group - expected) < 4.5 * np.sqrt(expected)).all()


def test_expression_depends_on_seed_and_index_alone(monkeypatch):
    forwards = [draw_expression(7, index, **SHORT) for index in range(20)]
    backwards = [draw_expression(7, index, **SHORT) for index in reversed(range(20))][::-1]
    assert all(np.array_equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(forwards, backwards, strict=True))
    other_seed = [draw_expression(8, index, **SHORT) for index in range(20)]
    assert len({tokens.tobytes() for tokens, _ in forwards + other_seed}) == 40
    monkeypatch.setattr(examples, "CHUNK", 3)
    chunks = list(generate(lambda seed, index: draw_expression(seed, index, **SHORT), 1, {"val": 20}, "test")["val"])
    forwards = [draw_expression(5, index, **SHORT) for index in range(20)]  # 4 · 1 + 1: the validation stream of seed 1
    assert np.array_equal(np.concatenate([chunk.tokens for chunk in chunks]), np.concatenate([t for t, _ in forwards]))
    assert np.concatenate([chunk.labels for chunk in chunks]).tolist() == [value for _, value in forwards]


def prepared(folder, **settings) -> ListOps:
    data = ListOps(data_dir=str(folder), **{**SHORT, **SIZES, **settings})
    data.prepare_data()
    data.setup("fit")
    return data


def sequences(data: ListOps, split: str) -> list[bytes]:
    arrays = data.splits[split].split
    return [part.tobytes() for part in np.split(arrays.tokens, arrays.offsets[1:-1])]


def test_splits_share_no_expression_and_do_not_depend_on_each_other(tmp_path):
    data = prepared(tmp_path)
    seen = [sequence for split in ("train", "val", "test") for sequence in sequences(data, split)]
    assert len(set(seen)) == len(seen) == sum(SIZES.values())
    larger = prepared(tmp_path, train_size=80)
    assert sequences(larger, "val") == sequences(data, "val")
    assert sequences(larger, "train")[:60] == sequences(data, "train")
    assert not set(sequences(prepared(tmp_path, data_seed=1), "train")) & set(seen)


def test_dropped_brackets_are_all_that_is_dropped(tmp_path):
    data, dropped = prepared(tmp_path), prepared(tmp_path, protocol=Protocol(brackets=False))
    closing = bytes([CLOSE])
    for split in ("train", "val", "test"):
        assert sequences(dropped, split) == [whole.replace(closing, b"") for whole in sequences(data, split)]
        assert np.array_equal(dropped.splits[split].split.labels, data.splits[split].split.labels)


def test_batches_against_examples_worked_out_by_hand(tmp_path):
    data = prepared(tmp_path, min_length=4, max_length=20, max_depth=10, max_args=4, batch_size=60)
    assert (data.vocab_size, data.num_classes, data.max_length, data.image_side) == (16, 10, 64, 0)
    (batch,) = data.train_dataloader()
    assert batch.tokens.shape == batch.mask.shape == (60, 32)
    by_hand = {0: ("[SM 2 4 5 ]", 1), 4: ("[SM 2 [MIN 0 [MAX 9 5 0 ] 8 2 ] ]", 2), 5: ("[MAX 3 [MED 8 4 ] ]", 6)}
    for example, (text, value) in by_hand.items():
        (row,) = np.flatnonzero(batch.example == example)
        length = len(ids(text))
        assert np.array_equal(batch.tokens[row, :length], ids(text))
        assert batch.mask[row].tolist() == [True] * length + [False] * (32 - length)
        assert batch.label[row] == value
    assert np.array_equal(batch.mask, batch.tokens != 0), "padding is 0, and 0 is nothing else"
    assert ids("[SM 2 4 5 ]").tolist() == [14, 3, 5, 6, 15]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_length": 2000}, "data.min_length=2000"),
        ({"min_length": 1999}, "data.min_length=1999"),
        ({"min_length": -1}, "data.min_length=-1"),
        ({"max_depth": 1}, "data.max_depth=1"),
        ({"max_args": 1}, "data.max_args=1"),
        ({"max_depth": 3}, "give at most 122 tokens, none above data.min_length=500"),
        ({"val_size": 0}, "data.val_size=0"),
        ({"data_seed": 2**60}, "data.data_seed="),
        ({"num_workers": -1}, "data.num_workers=-1"),
        ({"eval_batch_size": 0}, "data.eval_batch_size=0"),
    ],
)
def test_nonsense_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        ListOps(**change)


def test_lengths_that_are_never_reached_are_refused():
    """Two arguments at most: trees die out long before 500 tokens."""
    with pytest.raises(PreparedDataError, match=r"data\.max_args=2"):
        draw_expression(0, 0, 500, 2000, 10, 2)


def test_sequences_fit_the_announced_length():
    assert ListOps().max_length == 2048  # the longest has 1,999 tokens; 2,048 positions are customary


def arguments_of(tokens: list[int]) -> tuple:
    """An expression as nested tuples: an operator and its arguments, or a digit."""
    stack = [[]]
    for token in tokens:
        if token == CLOSE:
            closed = tuple(stack.pop())
            stack[-1].append(closed)
        elif token >= MIN:
            stack.append([token])
        else:
            stack[-1].append(token)
    return stack[0][0]


def in_order(tree):
    """The same for all orders of arguments."""
    return tree if isinstance(tree, int) else (tree[0], *sorted(map(in_order, tree[1:]), key=str))


def test_permuted_arguments_keep_tree_and_value():
    for index in range(200):
        tokens, value = draw_expression(3, index, min_length=1, max_length=100, max_depth=6, max_args=5)
        permuted = permute_arguments(tokens.astype(np.int64), index)
        assert evaluate(permuted) == value
        assert in_order(arguments_of(permuted.tolist())) == in_order(arguments_of(tokens.tolist()))
        assert np.array_equal(permuted, permute_arguments(tokens.astype(np.int64), index)), "a function of the seed"


def test_every_order_of_arguments_is_as_likely():
    tokens = ids("[MAX 1 [MIN 2 3 ] 4 ]").astype(np.int64)
    seen = Counter(permute_arguments(tokens, seed).tobytes() for seed in range(3000))
    assert len(seen) == 3 * 2 * 2
    assert all(abs(count - 250) < 4.5 * np.sqrt(250) for count in seen.values())


def test_training_sees_permuted_expressions_and_evaluation_does_not(tmp_path):
    plain, permuted = (prepared(tmp_path, augment=augment, batch_size=60) for augment in (False, True))
    assert plain.folder == permuted.folder
    (whole,), (other,) = plain.train_dataloader(), permuted.train_dataloader()
    assert torch.equal(whole.example, other.example)
    assert torch.equal(whole.mask, other.mask)
    assert (whole.tokens != other.tokens).any(dim=1).sum() > 30
    for row, mask, label in zip(other.tokens, other.mask, other.label, strict=True):
        assert evaluate(row[mask].numpy()) == label
    assert torch.equal(next(iter(plain.val_dataloader())).tokens, next(iter(permuted.val_dataloader())).tokens)
