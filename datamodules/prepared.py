"""Prepared arrays: what a task's raw source becomes once, and what training then reads, and nothing else.

A folder holds, for each split, `tokens.bin` (all documents end to end), `offsets.bin` (int64, one more than there are
documents), `labels.bin` and, where the examples have names, `names.txt`; and a `meta.json` that says what made them.
Its name carries a hash of the settings, so two settings never share a folder. `writing.py` writes it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FORMAT_VERSION = 2
DTYPES = {"tokens": "uint8", "offsets": "int64", "labels": "uint8"}
REMAKE = "Remove the folder; the next run makes it anew."


class PreparedDataError(RuntimeError):
    """Data cannot be prepared or used; the message names the file and what to do."""


@dataclass(frozen=True)
class Split:
    """One split, memory-mapped.

    Attributes:
        tokens: `(total,)` uint8.
        offsets: `(documents + 1,)` int64; document i is `tokens[offsets[i]:offsets[i + 1]]`.
        labels: `(examples,)` uint8; an example has one document, or two that follow each other.
        names_path: the examples' names, a line each; None where their place in the split is their name.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    names_path: Path | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_documents(self) -> int:
        """Documents an example."""
        return (len(self.offsets) - 1) // len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """`(examples, num_documents)` int64."""
        return np.diff(self.offsets).reshape(len(self), self.num_documents)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the files again, in place of a copy of what is in them."""
        arrays = (self.tokens, self.offsets, self.labels)
        paths = [array.filename for array in arrays if isinstance(array, np.memmap)]
        return (_map, (paths, self.names_path)) if paths else (Split, (*arrays, self.names_path))

    def names(self) -> list[str]:
        """What each example is called, after its place in the source."""
        if self.names_path is None:
            return [str(number) for number in range(len(self))]
        return self.names_path.read_text(encoding="utf-8").splitlines()


def folder_name(task: str, settings: Mapping[str, Any]) -> str:
    """`<task>-<hash of the settings and the format>`."""
    text = json.dumps({"format": FORMAT_VERSION, **settings}, sort_keys=True)
    return f"{task}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def load(folder: Path, settings: Mapping[str, Any], split: str) -> Split:
    """Map one split of a prepared folder; the files' sizes are checked, not their checksums (see `verify`).

    Raises:
        PreparedDataError: for a folder that is missing, of another version or settings, or with a file cut short.
    """
    meta = read_meta(folder)
    if meta["settings"] != json.loads(json.dumps(settings)):
        raise PreparedDataError(f"{folder / 'meta.json'} was made with other settings: {meta['settings']}. {REMAKE}")
    files = meta["splits"].get(split)
    if files is None or not DTYPES.keys() <= files.keys():
        raise PreparedDataError(f"{folder / 'meta.json'} does not describe split {split!r}. {REMAKE}")
    for name, expected in files.items():
        _check_size(_path(folder, split, name), expected["bytes"])
    paths = [_path(folder, split, name) for name in DTYPES]
    return _map(paths, _path(folder, split, "names") if "names" in files else None)


def _map(paths: list[Any], names_path: Path | None) -> Split:
    """From the paths of tokens, offsets and labels."""
    tokens, offsets, labels = (np.memmap(path, dtype, "r") for path, dtype in zip(paths, DTYPES.values(), strict=True))
    return Split(tokens, offsets, labels, names_path)


def read_meta(folder: Path) -> dict[str, Any]:
    """The folder's `meta.json`, checked for its version.

    Raises:
        PreparedDataError: when it is missing, damaged or of another version.
    """
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise PreparedDataError(f"{path} cannot be read ({error}). {REMAKE}") from error
    version = meta.get("format") if isinstance(meta, dict) else None
    if version != FORMAT_VERSION or not {"settings", "source", "splits", "skipped"} <= meta.keys():
        raise PreparedDataError(f"{path} has format {version!r}, this version reads {FORMAT_VERSION}. {REMAKE}")
    return meta


def verify(folder: Path) -> int:
    """Compare every file's checksum with the one written down when it was made, on all cores.

    Returns:
        The number of files.

    Raises:
        PreparedDataError: naming the first file that differs.
    """
    files = list(_files(folder, read_meta(folder)))
    for path, expected in files:
        _check_size(path, expected["bytes"])
    with ThreadPoolExecutor() as pool:
        digests = pool.map(lambda file: sha256_of(file[0]), files)
        for (path, expected), digest in zip(files, digests, strict=True):
            if digest != expected["sha256"]:
                raise PreparedDataError(f"{path} has sha256 {digest}, it was {expected['sha256']} when made. {REMAKE}")
    return len(files)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path, meta: Mapping[str, Any]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    for split, files in meta["splits"].items():
        for name, expected in files.items():
            yield _path(folder, split, name), expected


def file_name(name: str) -> str:
    """The file of one array of a split, or of its names."""
    return f"{name}.bin" if name in DTYPES else f"{name}.txt"


def _path(folder: Path, split: str, name: str) -> Path:
    return folder / split / file_name(name)


def _check_size(path: Path, expected: int) -> None:
    found = None
    with suppress(OSError):
        found = path.stat().st_size
    if found != expected:
        what = "nothing" if found is None else f"{found:,} bytes"
        raise PreparedDataError(f"{path} should have {expected:,} bytes, found {what}. {REMAKE}")
