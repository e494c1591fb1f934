"""Splits of random sequences, with the settings of the batches made from them."""

import numpy as np

from datamodules.prepared.layout import UNLABELLED
from datamodules.prepared.split import Split

RNG = np.random.default_rng(0)


def random_split(lengths: list[int], documents: int = 1, black: float = 0.0) -> Split:
    tokens = RNG.integers(0, 256, sum(lengths)).astype(np.uint8)
    tokens[RNG.random(len(tokens)) < black] = 0
    labels = RNG.integers(0, 10, len(lengths) // documents).astype(np.uint8)
    return Split(tokens, np.concatenate([[0], np.cumsum(lengths)]), labels)


def labelled_tokens(split: Split) -> Split:
    """The same sequences with a label for every second token."""
    labels = np.where(np.arange(len(split.tokens)) % 2, RNG.integers(0, 10, len(split.tokens)), UNLABELLED)
    return Split(split.tokens, split.offsets, labels.astype(np.int16), token_labels=True)


SPREAD = RNG.integers(1, 200, 40).tolist()
SEQUENCES = {
    "spread": (random_split(SPREAD), {}),
    "multiple of 4": (random_split(SPREAD), {"pad_multiple": 4}),
    "shifted ids": (random_split(SPREAD), {"first_id": 1}),
    "fixed width": (random_split(SPREAD), {"pad_to": 256, "first_id": 1}),
    "labelled tokens": (labelled_tokens(random_split(SPREAD)), {"first_id": 1}),
    "one length": (random_split([64] * 40), {}),
    "one length, padded": (random_split([63] * 40), {}),
    "two documents": (random_split(SPREAD * 2, documents=2), {"first_id": 1}),
    "two documents of one length": (random_split([64] * 80, documents=2), {}),
}
