"""Shared by the generated tasks: sizes, seeds, a stream for each split."""

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from datamodules.examples import Chunk, Example, make_examples_in_processes

# Each split has its own random stream, so the size of a split never changes another split.
STREAMS = {"train": 0, "val": 1, "test": 2}
Draw = Callable[[int, int], tuple[np.ndarray, int | np.ndarray]]


def generate(
    draw: Draw,
    data_seed: int,
    sizes: dict[str, int],
    description: str,
    compiling: str | None = "Compiling the loops ...",
) -> dict[str, Iterable[Chunk]]:
    """Generate the chunks of each split lazily, on all cores.

    Args:
        draw: a pure, picklable function from (the stream's seed, index) to tokens and label, as in `Example`. Tokens of
            any shape are stored flat.
        data_seed: seed of the streams.
        sizes: examples a split.
        description: shown, with the split, next to the progress bar.
        compiling: see `make_examples_in_processes`.
    """
    return {
        split: make_examples_in_processes(
            partial(_make, draw, (data_seed << 2) + STREAMS[split]),
            range(size),
            f"{description}, {split:>5}",
            compiling,
        )
        for split, size in sizes.items()
    }


def _make(draw: Draw, seed: int, index: int) -> Example:
    tokens, label = draw(seed, index)
    return Example((tokens.reshape(-1),), label)


def check_sizes(train: int, val: int, test: int) -> dict[str, int]:
    """Return the three sizes by split.

    Raises:
        ValueError: for one below 1, naming its key.
    """
    check_at_least_one(train_size=train, val_size=val, test_size=test)
    return {"train": train, "val": val, "test": test}


def check_at_least_one(**values: int) -> None:
    """Check settings by name.

    Raises:
        ValueError: for one below 1, naming its key.
    """
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"data.{name}={value} must be at least 1")


def check_seed(seed: int) -> int:
    """Return a seed that the generators take.

    Raises:
        ValueError: for a negative or a very large one.
    """
    if not 0 <= seed < 2**60:
        raise ValueError(f"data.data_seed={seed} must lie in [0, 2**60)")
    return seed
