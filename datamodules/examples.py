"""Read or generate the examples of a raw source on all cores, in order."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch.utils.data import DataLoader, Dataset

from datamodules.files import PreparedDataError

CHUNK = 256
_CGROUP = Path("/sys/fs/cgroup")  # as a container sees its own limits
Item = TypeVar("Item")


class Example(NamedTuple):
    """One example of a source.

    Attributes:
        documents: tokens of its document, or of its two; uint8, or int16 for more than 256 ids.
        label: the class; or `(N,)` int16, the class of each token, or `UNLABELLED` (`prepared/layout.py`).
        name: its place in the source; empty if its place in the split is enough.
    """

    documents: tuple[np.ndarray, ...]
    label: int | np.ndarray
    name: str = ""


class Skipped(NamedTuple):
    """An unusable example and the reason; counted and listed in `meta.json`."""

    reason: str


class Chunk(NamedTuple):
    """Several examples: concatenated `tokens`, `lengths` int64 of each document, concatenated `labels`."""

    tokens: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    names: Sequence[str] = ()
    skipped: Sequence[str] = ()


def pack(outcomes: Iterable[Example | Skipped]) -> Chunk:
    """Return one chunk of the examples, in order."""
    outcomes = list(outcomes)
    examples = [outcome for outcome in outcomes if isinstance(outcome, Example)]
    documents = [document for example in examples for document in example.documents]
    return Chunk(
        np.concatenate(documents) if documents else np.zeros(0, dtype=np.uint8),
        np.array([len(document) for document in documents], dtype=np.int64),
        np.concatenate([np.zeros(0, dtype=np.uint8), *(np.atleast_1d(example.label) for example in examples)]),
        [_one_line(example.name) for example in examples if example.name],
        [_one_line(outcome.reason) for outcome in outcomes if isinstance(outcome, Skipped)],
    )


def _one_line(name: str) -> str:
    """Return the text as one line of valid UTF-8, since file names may hold anything."""
    return " ".join(name.encode("utf-8", "backslashreplace").decode().split())


def packed(outcomes: Iterable[Example | Skipped]) -> Iterator[Chunk]:
    """Yield chunks of the examples, in order."""
    remaining = iter(outcomes)
    while part := list(islice(remaining, CHUNK)):
        yield pack(part)


def make_examples(
    make: Callable[[Item], Example | Skipped], items: Sequence[Item], description: str
) -> Iterator[Chunk]:
    """Yield chunks of `make(item)` for all items from threads, in order, with a progress bar.

    Args:
        make: a pure function that waits for files most of the time.
        items: file names, ...
        description: shown next to the progress bar.
    """
    parts = _parts(items)
    workers = available_cores()
    pending: deque[Future[Chunk]] = deque()
    pool = ThreadPoolExecutor(workers)

    def chunks() -> Iterator[Chunk]:
        for number in range(len(parts) + 2 * workers):
            if number < len(parts):
                pending.append(pool.submit(lambda part: pack(map(make, part)), parts[number]))
            if number >= 2 * workers and pending:  # bounds what waits in memory
                yield pending.popleft().result()

    try:
        yield from _with_progress(chunks(), len(items), description)
    finally:
        pool.shutdown(cancel_futures=True)


def make_examples_in_processes(
    make: Callable[[Item], Example | Skipped], items: Sequence[Item], description: str, compiling: str | None = None
) -> Iterator[Chunk]:
    """Do the same in processes, one for each core, for a `make` that computes.

    The interpreter's lock limits threads to about three busy cores, even if `make` calls compiled loops that release
    it.

    PyTorch's loader keeps the order, ends with its parent process, and passes errors on.

    Args:
        make: a pure, picklable function.
        items: file names, indices, ...
        description: shown next to the progress bar.
        compiling: for a `make` that compiles itself when first called: shown while this process does so. Forked
            processes then inherit the compiled code.
    """
    parts = _parts(items)
    workers = min(available_cores(), len(parts))
    loader = DataLoader(
        _Made(make, parts),
        batch_size=None,
        num_workers=workers if workers > 1 else 0,
        collate_fn=identity,
        generator=torch.Generator(),  # else it would draw from the global one
    )

    def chunks() -> Iterator[Chunk]:
        if compiling is not None:
            make(items[0])
        yield from _raise_errors(loader)

    yield from _with_progress(chunks(), len(items), description, compiling)


class _Made(Dataset[Chunk | PreparedDataError]):
    """A dataset of chunks. An item may be an error, which reaches the user without the worker's traceback."""

    def __init__(self, make: Callable[[Any], Example | Skipped], parts: Sequence[Sequence[Any]]) -> None:
        self.make = make
        self.parts = parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: int) -> Chunk | PreparedDataError:
        try:
            return pack(map(self.make, self.parts[number]))
        except PreparedDataError as error:
            return error


def identity(item: Any) -> Any:
    """Return the item: the collate function of a loader whose dataset gives whole batches."""
    return item


def _raise_errors(loader: Iterable[Chunk | PreparedDataError]) -> Iterator[Chunk]:
    outcomes = iter(loader)
    for outcome in outcomes:
        if isinstance(outcome, PreparedDataError):
            del outcomes, loader  # ends the processes now; the error's traceback would keep them
            raise outcome
        yield outcome


def _parts(items: Sequence[Item]) -> list[Sequence[Item]]:
    return [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]


def _with_progress(
    chunks: Iterable[Chunk], total: int, description: str, at_first: str | None = None
) -> Iterator[Chunk]:
    with progress_bar(MofNCompleteColumn()) as progress:
        bar = progress.add_task(at_first or description, total=total)
        for number, chunk in enumerate(chunks, start=1):
            progress.update(bar, description=description, completed=min(number * CHUNK, total))
            yield chunk


def progress_bar(counter: ProgressColumn) -> Progress:
    """Make a progress bar: description, bar, completed and total, elapsed and remaining time."""
    return Progress(
        TextColumn("{task.description}", markup=False),  # it can hold the name of a file
        BarColumn(),
        counter,
        TimeElapsedColumn(),
        TextColumn("<"),
        TimeRemainingColumn(),
    )


def available_cores() -> int:
    """Cores that this process may use, at least 1.

    The machine can have more: SLURM binds a process to some, `docker run --cpus` and Kubernetes limit processor time.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *_quota()]))


def _quota() -> list[int]:
    """Return the container's limit of processor time in whole cores, if there is one."""
    with suppress(OSError, ValueError):  # no control groups, or `max`
        quota, period = map(int, (_CGROUP / "cpu.max").read_text().split())
        return [quota // period]
    with suppress(OSError, ValueError):  # version 1 of control groups, where -1 is no limit
        quota, period = (int((_CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return [quota // period] if quota > 0 else []
    return []
