"""Draws many examples of a generated task on all cores, in order, with a progress bar."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from datamodules.prepared import Chunk

# Each split draws from a stream of its own, so that a split's size never changes another split.
STREAMS = {"train": 0, "dev": 1, "test": 2}
Draw = Callable[[int], tuple[np.ndarray, int]]


def generate(draw: Draw, indices: range, description: str, chunk_size: int = 256) -> Iterator[Chunk]:
    """Chunks of `draw(index)` for all indices, in their order whatever the number of threads.

    Args:
        draw: (tokens uint8, label) of one index, a pure function of it; compiled code that frees the interpreter.
        indices: which examples.
        description: shown beside the progress bar.
        chunk_size: examples in a chunk.
    """
    parts = [indices[start : start + chunk_size] for start in range(0, len(indices), chunk_size)]
    workers = available_cores()
    pending: deque[Future[Chunk]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        with _progress() as progress:
            bar = progress.add_task("Compiling the loops ...", total=len(indices))
            for number in range(len(parts) + 2 * workers):
                if number < len(parts):
                    pending.append(pool.submit(_draw_chunk, draw, parts[number]))
                if number >= 2 * workers and pending:  # bounds what waits in memory
                    yield (chunk := pending.popleft().result())
                    progress.update(bar, description=description, advance=len(chunk.labels))
    finally:
        pool.shutdown(cancel_futures=True)


def available_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _draw_chunk(draw: Draw, indices: range) -> Chunk:
    tokens, labels = zip(*(draw(index) for index in indices), strict=True)
    lengths = np.array([len(sequence) for sequence in tokens], dtype=np.int64)
    return Chunk(np.concatenate(tokens), lengths, np.array(labels, dtype=np.uint8))


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("<"),
        TimeRemainingColumn(),
    )


def check_sizes(train: int, dev: int, test: int) -> dict[str, int]:
    """The three sizes by split.

    Raises:
        ValueError: for one below 1, naming its key.
    """
    for name, size in (("train_size", train), ("dev_size", dev), ("test_size", test)):
        if size < 1:
            raise ValueError(f"data.{name}={size} must be at least 1")
    return {"train": train, "dev": dev, "test": test}


def check_seed(seed: int) -> int:
    """Return a seed that the generators take.

    Raises:
        ValueError: for a negative or a very large one.
    """
    if not 0 <= seed < 2**60:
        raise ValueError(f"data.data_seed={seed} must lie in [0, 2**60)")
    return seed
