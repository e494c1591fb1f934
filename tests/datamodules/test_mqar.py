"""MQAR as its paper defines it: keys and values, each key asked once more, its value the label."""

import numpy as np
import pytest
import torch
from refusals import refuse

from datamodules import MQAR
from datamodules.files import PreparedDataError
from datamodules.mqar import draw_example
from datamodules.prepared.layout import UNLABELLED

SMALL = {"train_size": 40, "val_size": 9, "test_size": 10, "batch_size": 4}


@pytest.fixture
def make(tmp_path):
    """`make(vocab_size=…, …)`: a module whose loaders are ready."""

    def build(**settings) -> MQAR:
        data = MQAR(data_dir=str(tmp_path), **{**SMALL, **settings})
        data.prepare_data()
        data.setup("fit")
        return data

    return build


def assert_example(tokens: np.ndarray, labels: np.ndarray, vocab_size: int, pairs: int) -> None:
    half = vocab_size // 2
    keys, values = tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2]
    assert len(set(keys)) == len(set(values)) == pairs
    assert keys.min() >= 2
    assert keys.max() < half <= values.min()
    assert values.max() < vocab_size
    (places,) = np.nonzero(labels != UNLABELLED)
    assert places.min() >= 2 * pairs
    assert (places % 2 == 0).all()
    value_of = dict(zip(keys, values, strict=True))
    assert dict(zip(tokens[places], labels[places], strict=True)) == value_of
    assert (np.delete(tokens[2 * pairs :], places - 2 * pairs) == 1).all()


@pytest.mark.parametrize(("vocab_size", "cases"), [(8192, ((64, 4), (64, 16))), (12, ((17, 4), (8, 2), (4, 1)))])
def test_every_query_is_a_key_and_its_label_the_value(vocab_size, cases):
    for index in range(60):
        length, pairs = cases[index % len(cases)]
        tokens, labels = draw_example(vocab_size, cases, 0.01, 5, index)
        assert len(tokens) == len(labels) == length
        assert_example(tokens, labels, vocab_size, pairs)


def test_batches_hold_the_cases_of_their_split(make):
    data = make(vocab_size=300, train_cases=((16, 2), (40, 5)), test_cases=((64, 16), (16, 3)))
    assert (data.vocab_size, data.num_classes, data.max_length) == (300, 300, 64)
    assert data.test_case_names == ("64 tokens, 16 pairs", "16 tokens, 3 pairs")
    for loader, cases, count in (
        (data.train_dataloader(), data.cases["train"], 40),
        (data.val_dataloader(), data.cases["val"], 9),
        (data.test_dataloader(), data.cases["test"], 10),
    ):
        met = 0
        for batch in loader:
            assert batch.label.shape == batch.tokens.shape
            assert (batch.label[~batch.mask] == UNLABELLED).all()
            for tokens, labels, mask, example in zip(
                batch.tokens.numpy(), batch.label.numpy(), batch.mask.numpy(), batch.example.tolist(), strict=True
            ):
                length, pairs = cases[example % len(cases)]
                assert mask.sum() == length
                assert_example(tokens[mask], labels[mask], 300, pairs)
                met += 1
        assert met == count


def test_examples_are_a_function_of_the_data_seed(make):
    def train_tokens(**settings) -> np.ndarray:
        data = make(vocab_size=64, train_cases=((16, 3),), test_cases=((16, 3),), **settings)
        return np.array(data.splits["train"].split.tokens)

    first = train_tokens()
    assert np.array_equal(train_tokens(batch_size=7, test_size=3), first), "other splits have their own streams"
    assert not np.array_equal(train_tokens(data_seed=1), first)


@pytest.mark.parametrize("power", [0.01, 1.0])
def test_gaps_follow_the_power_law(power):
    """One pair in 34 tokens has 16 gaps."""
    count = 4000
    places = [np.flatnonzero(draw_example(64, ((34, 1),), power, 0, index)[1] != UNLABELLED) for index in range(count)]
    found = np.bincount((np.concatenate(places) - 2) // 2, minlength=16) / count
    weights = np.arange(1, 17) ** (power - 1)
    expected = weights / weights.sum()
    assert (np.abs(found - expected) < 4 * np.sqrt(expected / count)).all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"vocab_size": 65}, "data.vocab_size=65 must be even"),
        ({"vocab_size": 40_000}, "data.vocab_size=40000 must be even, above 4, at most 32768"),
        ({"train_cases": ((16, 5),)}, "data.train_cases has 16 tokens for 5 pairs. Fix: 1 pair or more, and 4 tokens"),
        ({"test_cases": ((16, 0),)}, "data.test_cases has 16 tokens for 0 pairs"),
        ({"test_cases": ()}, r"data.test_cases=\[\] must have a case"),
        ({"vocab_size": 8, "train_cases": ((64, 3),)}, "3 pairs, data.vocab_size=8 has 2 keys"),
        ({"power": 0.0}, "data.power=0.0 must be above 0 and at most 1"),
        ({"train_size": 0}, "data.train_size=0 must be at least 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(settings, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        MQAR(data_dir=str(tmp_path), **settings)


def test_odd_vocabulary_on_the_command_line(tmp_path, main, tiny_arguments, capsys):
    odd = ["fit", *tiny_arguments("mqar", tmp_path), "--data.vocab_size=15"]
    refuse(main, capsys, odd, 1, "data.vocab_size=15 must be even")


def test_new_inputs_ask_for_keys_that_occurred_before(make, tmp_path):
    data = make(vocab_size=16, train_cases=((16, 2),), test_cases=((16, 2),))
    path = tmp_path / "new.txt"
    path.write_text("2 9 3 10 3 1 2\n5 8 5\n")
    found = list(data.new_examples(path))
    assert [example.documents[0].tolist() for example in found] == [[2, 9, 3, 10, 3, 1, 2], [5, 8, 5]]
    assert [np.flatnonzero(example.label == 0).tolist() for example in found] == [[4, 6], [2]]
    for text, said in (
        ("2 x", "token ids"),
        ("2 9 16", "expected at most 16 ids of 1 ... 15"),
        ("2 9", "no key occurs twice"),
    ):
        path.write_text(text)
        with pytest.raises(PreparedDataError, match=said):
            list(data.new_examples(path))


def test_large_ids_survive_preparation(make):
    data = make(vocab_size=32_768, train_cases=((8, 2),), test_cases=((8, 2),))
    split = data.splits["train"].split
    assert (split.tokens.dtype, split.labels.dtype) == (np.int16, np.int16)
    expected, labels = draw_example(32_768, ((8, 2),), 0.01, 0, 3)
    assert torch.equal(data.splits["train"][3].tokens[0, :8], torch.from_numpy(expected.astype(np.int64)))
    assert split.labels[24:32].tolist() == labels.tolist()
