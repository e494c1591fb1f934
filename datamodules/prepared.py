"""Prepared arrays: what a task's raw source becomes once, and what training then reads, and nothing else.

A folder holds, for each split, `tokens.bin` (all sequences end to end), `offsets.bin` (int64, one more than there are
examples) and `labels.bin`, and a `meta.json` that says what made them. Its name carries a hash of the settings, so two
settings never share a folder. It is written under another name and renamed when it is whole, so a folder under its own
name is always whole.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

FORMAT_VERSION = 1
_DTYPES = {"tokens": "uint8", "offsets": "int64", "labels": "uint8"}


class PreparedDataError(RuntimeError):
    """A prepared folder cannot be made or used; the message names the file and what to do."""


class Chunk(NamedTuple):
    """Some examples: `tokens` uint8 end to end, `lengths` int64 and `labels` uint8, one for each."""

    tokens: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Split:
    """One split, memory-mapped.

    Attributes:
        tokens: `(total,)` uint8.
        offsets: `(examples + 1,)` int64; example i is `tokens[offsets[i]:offsets[i + 1]]`.
        labels: `(examples,)` uint8.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """`(examples,)` int64."""
        return np.diff(self.offsets)


def folder_name(task: str, settings: Mapping[str, Any]) -> str:
    """`<task>-<hash of the settings and the format>`."""
    text = json.dumps({"format": FORMAT_VERSION, **settings}, sort_keys=True)
    return f"{task}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def prepare(
    root: Path, task: str, settings: Mapping[str, Any], splits: Mapping[str, Iterable[Chunk]], expected_bytes: int
) -> Path:
    """Write the folder for `settings` unless it is there; the splits are only iterated if it is not.

    One process prepares at a time; another waits and then finds the folder.

    Args:
        root: folder of all prepared data; made if missing.
        task: first part of the folder's name.
        settings: everything that the arrays depend on; plain JSON values.
        splits: chunks of each split, lazily.
        expected_bytes: a guess of the size, compared with the free space before a long computation starts.

    Raises:
        PreparedDataError: when there is no room or no permission; nothing half-made is left.
    """
    folder = root / folder_name(task, settings)
    if (folder / "meta.json").exists():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _waiting_lock(root / f".{folder.name}.lock"):
            if not (folder / "meta.json").exists():
                if folder.exists():
                    raise PreparedDataError(f"{folder} has no meta.json. {_REMAKE}")
                _check_space(root, expected_bytes)
                _write_and_rename(folder, task, settings, splits)
    except OSError as error:
        raise PreparedDataError(
            f"cannot prepare {folder}: {error.strerror or error}. Nothing was kept; free some space or set "
            f"data.data_dir to a folder with room for about {expected_bytes / 1e6:,.0f} MB."
        ) from error
    return folder


def load(folder: Path, settings: Mapping[str, Any], split: str) -> Split:
    """Map one split of a prepared folder; the files' sizes are checked, not their checksums.

    Raises:
        PreparedDataError: for a folder that is missing, of another version or settings, or with a file cut short.
    """
    meta = read_meta(folder)
    if meta["settings"] != json.loads(json.dumps(settings)):
        raise PreparedDataError(f"{folder / 'meta.json'} was made with other settings: {meta['settings']}. {_REMAKE}")
    files = meta["splits"].get(split)
    if files is None or not _DTYPES.keys() <= files.keys():
        raise PreparedDataError(f"{folder / 'meta.json'} does not describe split {split!r}. {_REMAKE}")
    return Split(**{name: _map(folder / split / f"{name}.bin", files[name]) for name in _DTYPES})


def read_meta(folder: Path) -> dict[str, Any]:
    """The folder's `meta.json`, checked for its version.

    Raises:
        PreparedDataError: when it is missing, damaged or of another version.
    """
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise PreparedDataError(f"{path} cannot be read ({error}). {_REMAKE}") from error
    version = meta.get("format") if isinstance(meta, dict) else None
    if version != FORMAT_VERSION or not {"settings", "splits"} <= meta.keys():
        raise PreparedDataError(f"{path} has format {version!r}, this version reads {FORMAT_VERSION}. {_REMAKE}")
    return meta


_REMAKE = "Remove the folder; the next run makes it anew."


@contextmanager
def _waiting_lock(path: Path) -> Iterator[None]:
    """Hold a lock file; say so when another process has it."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Waiting for another process that prepares the same data ({path}) ...", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _check_space(root: Path, expected_bytes: int) -> None:
    free = shutil.disk_usage(root).free
    if free < expected_bytes:
        raise OSError(f"{free / 1e6:,.0f} MB are free and about {expected_bytes / 1e6:,.0f} MB are needed")


def _write_and_rename(
    folder: Path, task: str, settings: Mapping[str, Any], splits: Mapping[str, Iterable[Chunk]]
) -> None:
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    try:
        partial.mkdir()
        _write(partial, task, settings, splits)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write(folder: Path, task: str, settings: Mapping[str, Any], splits: Mapping[str, Iterable[Chunk]]) -> None:
    meta: dict[str, Any] = {"format": FORMAT_VERSION, "task": task, "settings": dict(settings), "splits": {}}
    for split, chunks in splits.items():
        (folder / split).mkdir()
        meta["splits"][split] = _write_split(folder / split, chunks)
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")


def _write_split(folder: Path, chunks: Iterable[Chunk]) -> dict[str, Any]:
    """Append the chunks to the three files of a split; plain writes, since a full disk kills a memory map."""
    lengths = []
    digests = {name: hashlib.sha256() for name in _DTYPES}
    sizes = dict.fromkeys(_DTYPES, 0)

    def append(name: str, array: np.ndarray) -> None:
        data = np.ascontiguousarray(array, dtype=_DTYPES[name]).tobytes()
        with open(folder / f"{name}.bin", "ab") as file:
            file.write(data)
        digests[name].update(data)
        sizes[name] += len(data)

    for chunk in chunks:
        append("tokens", chunk.tokens)
        append("labels", chunk.labels)
        lengths.append(chunk.lengths)
    append("offsets", np.concatenate([[0], np.cumsum(np.concatenate(lengths))]))
    return {
        name: {"dtype": dtype, "bytes": sizes[name], "sha256": digests[name].hexdigest()}
        for name, dtype in _DTYPES.items()
    }


def _map(path: Path, expected: Mapping[str, Any]) -> np.ndarray:
    with suppress(OSError):
        if path.stat().st_size == expected["bytes"]:
            return np.memmap(path, dtype=expected["dtype"], mode="r")
    found = f"{path.stat().st_size:,} bytes" if path.exists() else "nothing"
    raise PreparedDataError(f"{path} should have {expected['bytes']:,} bytes, found {found}. {_REMAKE}")
