"""MQAR, multi-query associative recall: find the value that was paired with a key earlier in the sequence."""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.base import SequenceDataModule
from datamodules.examples import Chunk, Example
from datamodules.generate import check_seed, check_sizes, generate
from datamodules.prepared.layout import MAX_IDS, UNLABELLED
from datamodules.prepared.writing import RawSplits
from datamodules.sources.new_inputs import read_lines, unusable

BLANK = 1  # the token between queries; 0 is padding
FIRST_KEY = 2

Case = tuple[int, int]  # tokens, pairs
PAPER_TRAIN: tuple[Case, ...] = ((64, 4), (128, 8), (256, 16), (256, 32), (256, 64))
PAPER_TEST: tuple[Case, ...] = (
    (64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 64), (512, 128), (1024, 256),
)  # fmt: skip


class MQAR(SequenceDataModule):
    """Key-value pairs, then each key once more as a query, drawn by this project. The label of a query is its value.

    Arora et al., *Zoology*, ICLR 2024 (arXiv 2312.04927). An example of N tokens and K pairs begins with k₁ v₁ … k_K
    v_K. Keys are different, and so are values. Keys are ids 2 … V / 2 − 1, values V / 2 … V − 1. Each key follows once
    more as a query, at position 2 K + 2 g, where the K gaps g are different and lie in 0 … (N − 2 K) / 2 − 1. They are
    drawn one after the other with probabilities proportional to (g + 1)^(power − 1), so most queries come early. Other
    positions hold the blank, id 1.

    Each query has a label, the id of its value; other tokens have none. No answer follows its query, so the encoder may
    see the whole sequence, unlike the causal models of the paper.

    By default, sizes are those of the paper's code for its comparison of lengths. Training and validation share cases.
    Test cases are also longer.

    Args:
        batch_size, common: see `SequenceDataModule`.
        vocab_size: V, even, with padding and blank.
        train_cases: (N, K) of the training and the validation examples. Each has an equal share; one that is listed
            twice has two.
        test_cases: the same of the test examples. `test` reports the accuracy of each.
        power: power of the gaps' distribution, above 0 and at most 1, which makes all gaps equally likely.
        train_size: number of examples to train on.
        val_size: number of examples of the validation set.
        test_size: number of examples of the test set.
        data_seed: seed of the examples; independent of the training seed.

    Raises:
        ValueError: for an invalid value, naming its key.
    """

    task = "mqar"
    class_names = ()  # the token ids
    citation = "Arora et al., Zoology, ICLR 2024"
    licence = "drawn here"
    pad_multiple = 1  # lengths are few
    token_labels = True

    def __init__(
        self,
        batch_size: int = 256,
        vocab_size: int = 8192,
        train_cases: tuple[Case, ...] = PAPER_TRAIN,
        test_cases: tuple[Case, ...] = PAPER_TEST,
        power: float = 0.01,
        train_size: int = 100_000,
        val_size: int = 2_000,
        test_size: int = 8_000,
        data_seed: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **common)
        if vocab_size % 2 or not FIRST_KEY * 2 < vocab_size <= MAX_IDS:
            raise ValueError(f"data.vocab_size={vocab_size} must be even, above {2 * FIRST_KEY}, at most {MAX_IDS}")
        if not 0 < power <= 1:
            raise ValueError(f"data.power={power} must be above 0 and at most 1")
        for name, cases in (("train_cases", train_cases), ("test_cases", test_cases)):
            _check_cases(name, cases, vocab_size)
        self.vocab_size = self.num_classes = vocab_size
        self.cases = {"train": train_cases, "val": train_cases, "test": test_cases}
        self.power = power
        self.sizes = check_sizes(train_size, val_size, test_size)
        self.data_seed = check_seed(data_seed)
        self.max_length = max(length for length, _ in (*train_cases, *test_cases))
        self.test_case_names = tuple(f"{length} tokens, {pairs} pairs" for length, pairs in test_cases)

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "vocab_size": self.vocab_size,
            "cases": self.cases,
            "power": self.power,
            "sizes": self.sizes,
            "data_seed": self.data_seed,
            "version": 1,
        }

    def expected_bytes(self) -> int:
        lengths = {split: sum(length for length, _ in cases) / len(cases) for split, cases in self.cases.items()}
        return 4 * int(sum(size * lengths[split] for split, size in self.sizes.items()))  # two int16 a token

    def raw_splits(self) -> RawSplits:
        splits: dict[str, Iterable[Chunk]] = {}
        for split, cases in self.cases.items():
            draw = partial(draw_example, self.vocab_size, cases, self.power)
            splits |= generate(draw, self.data_seed, {split: self.sizes[split]}, "Drawing MQAR", compiling=None)
        return splits

    def new_examples(self, path: Path) -> Iterator[Example]:
        """One example a line, as token ids; each key that occurred before is a query."""
        for where, line in read_lines(path):
            try:
                tokens = np.array(line.split(), dtype=np.int16)
            except (OverflowError, ValueError) as error:
                raise unusable(where, "a line of MQAR is token ids, separated by spaces") from error
            is_valid = len(tokens) <= self.max_length and tokens.min() >= BLANK and tokens.max() < self.vocab_size
            if not is_valid:
                expected = f"at most {self.max_length:,} ids of {BLANK} ... {self.vocab_size - 1}"
                raise unusable(where, f"{len(tokens):,} ids from {tokens.min()} to {tokens.max()}, expected {expected}")
            is_query = (tokens >= FIRST_KEY) & (tokens < self.vocab_size // 2)
            is_query[np.unique(tokens, return_index=True)[1]] = False
            if not is_query.any():
                raise unusable(where, "no key occurs twice, so nothing is asked")
            yield Example((tokens,), np.where(is_query, 0, UNLABELLED).astype(np.int16), where)


def draw_example(
    vocab_size: int, cases: tuple[Case, ...], power: float, seed: int, index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens and labels `(N,)` int16 of the `index`-th example of the stream with this seed."""
    length, pairs = cases[index % len(cases)]
    rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, index, 0]))
    half = vocab_size // 2
    keys = FIRST_KEY + rng.choice(half - FIRST_KEY, pairs, replace=False)
    values = half + rng.choice(half, pairs, replace=False)
    tokens = np.full(length, BLANK, dtype=np.int16)
    labels = np.full(length, UNLABELLED, dtype=np.int16)
    tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2] = keys, values
    gaps = np.arange((length - 2 * pairs) // 2)
    # The first K arrivals of independent exponential clocks are K draws without replacement (Efraimidis and Spirakis).
    arrivals = np.log(rng.exponential(size=len(gaps))) - (power - 1) * np.log1p(gaps)
    places = 2 * pairs + 2 * np.argsort(arrivals, kind="stable")[:pairs]
    tokens[places], labels[places] = keys, values
    return tokens, labels


def _check_cases(name: str, cases: tuple[Case, ...], vocab_size: int) -> None:
    if not cases:
        raise ValueError(f"data.{name}=[] must have a case, such as [64, 4]")
    for length, pairs in cases:
        if not 1 <= pairs <= length // 4:
            raise ValueError(
                f"data.{name} has {length} tokens for {pairs} pairs. Fix: 1 pair or more, and 4 tokens for each: a "
                "pair has two, a query and the token after it two more"
            )
        if pairs > vocab_size // 2 - FIRST_KEY:
            raise ValueError(
                f"data.{name} has {pairs} pairs, data.vocab_size={vocab_size} has {vocab_size // 2 - FIRST_KEY} keys. "
                "Fix: raise data.vocab_size"
            )
