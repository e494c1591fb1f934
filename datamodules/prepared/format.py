"""Prepared arrays, made once from a task's raw source. Training reads only these.

A folder has a `meta.json` that records how it was made. For each split it has these files:

- `tokens.bin`: all documents, concatenated
- `offsets.bin`: int64, one more than there are documents
- `labels.bin`: one for each example, or for each token
- `names.txt`, if the examples have names

Tokens and labels are uint8, or int16 for larger numbers (`Layout.dtypes`).

The folder's name has a hash of the settings, so two settings never share a folder. `writing.py` writes it.
"""

import hashlib
import json
import os
import reprlib
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from datamodules.files import REMAKE, PreparedDataError, read_bounded, unreadable
from datamodules.prepared.layout import Layout, layout_fault
from datamodules.prepared.meta import ARRAYS, check_meta, parse_meta
from datamodules.prepared.split import Split, map_split

FORMAT_VERSION = 2
META_LIMIT = 1 << 26  # bytes; thousands of skipped examples have less


def folder_name(task: str, settings: Mapping[str, Any]) -> str:
    """`<task>-<hash of the settings and the format>`."""
    text = json.dumps({"format": FORMAT_VERSION, **settings}, sort_keys=True)
    return f"{task}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def load(folder: Path, settings: Mapping[str, Any], split: str, layout: Layout) -> Split:
    """Memory-map one split of a prepared folder, and refuse contents that the task cannot have written.

    Checksums are not compared (see `verify`).

    Raises:
        PreparedDataError: if the folder is missing, or has another version or settings, a truncated file, or arrays
            that do not fit each other or the task.
    """
    meta = read_meta(folder)
    if meta["settings"] != json.loads(json.dumps(settings)):
        found = reprlib.repr(meta["settings"])
        raise PreparedDataError(f"{folder / 'meta.json'} was made with other settings: {found}. {REMAKE}")
    files = meta["splits"].get(split)
    if files is None:
        raise PreparedDataError(f"{folder / 'meta.json'} does not describe split {split!r}. {REMAKE}")
    for name, expected in files.items():
        _check_file(folder, _path(folder, split, name), expected["bytes"])
    paths = [_path(folder, split, name) for name in ARRAYS]
    names_path = _path(folder, split, "names") if "names" in files else None
    loaded = map_split(paths, names_path, tuple(layout.dtypes.values()), layout.token_labels)
    loaded.refuse(layout_fault(loaded.tokens, loaded.offsets, loaded.labels, layout))
    loaded.names()
    return loaded


def read_meta(folder: Path) -> dict[str, Any]:
    """The folder's `meta.json`, checked for its version and its fields.

    Raises:
        PreparedDataError: if it is missing, corrupt, of another version, or invalid in this version.
    """
    path = folder / "meta.json"
    try:
        _check_inside(folder, path)
        meta = parse_meta(read_bounded(path, META_LIMIT))
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    version = meta.get("format") if isinstance(meta, dict) else None
    if type(version) is not int or version != FORMAT_VERSION:
        found = reprlib.repr(version)
        raise PreparedDataError(f"{path} has format {found}, this version reads {FORMAT_VERSION}. {REMAKE}")
    try:
        check_meta(meta)
    except ValueError as error:
        raise PreparedDataError(f"{path}: {error}. {REMAKE}") from error
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
        _check_file(folder, path, expected["bytes"])
    with ThreadPoolExecutor() as pool:
        digests = pool.map(lambda file: sha256_of(file[0]), files)
        for (path, expected), digest in zip(files, digests, strict=True):
            if digest != expected["sha256"]:
                before = f"{expected['sha256']} when made (see meta.json)"
                raise PreparedDataError(f"{path} has sha256 {digest}, it was {before}. {REMAKE}")
    return len(files)


def data_hash(folder: Path) -> str:
    """Return 16 hexadecimal digits that identify the contents of the splits, from `meta.json` alone.

    Raises:
        PreparedDataError: as `read_meta`.
    """
    splits = read_meta(folder)["splits"]
    lines = (f"{split} {name} {file['sha256']}\n" for split, files in splits.items() for name, file in files.items())
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()[:16]


def sha256_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error


def _files(folder: Path, meta: Mapping[str, Any]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    for split, files in meta["splits"].items():
        for name, expected in files.items():
            yield _path(folder, split, name), expected


def file_name(name: str) -> str:
    """The file of one array of a split, or of its names."""
    return f"{name}.bin" if name in ARRAYS else f"{name}.txt"


def _path(folder: Path, split: str, name: str) -> Path:
    return folder / split / file_name(name)


def _check_file(folder: Path, path: Path, expected: int) -> None:
    """Refuse what is no regular file of this size, and a link that leads out of the folder."""
    found = None
    try:
        _check_inside(folder, path)
        with suppress(FileNotFoundError, NotADirectoryError):
            status = path.stat()
            found = status.st_size if stat.S_ISREG(status.st_mode) else None
    except OSError as error:
        raise unreadable(path, error) from error
    if found != expected:
        what = "nothing" if found is None else f"{found:,} bytes"
        raise PreparedDataError(f"{path} should have {expected:,} bytes, found {what} (see meta.json). {REMAKE}")


def _check_inside(folder: Path, path: Path) -> None:
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise PreparedDataError(f"{path} is a link to a place outside the folder. {REMAKE}")
