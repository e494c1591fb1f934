"""Atomic writes."""

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: bytes | memoryview | str, former: Path | None = None) -> None:
    """Write a temporary file and rename it, so that a crash or a full disk leaves the former content.

    Args:
        path: the file; its folder is made if missing.
        content: text is written as UTF-8.
        former: the name under which what was there is kept.

    Raises:
        OSError: naming the file that could not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with name_in_errors(path):
        _write_and_rename(partial, path, content, former)


def _write_and_rename(partial: Path, path: Path, content: bytes | memoryview | str, former: Path | None) -> None:
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        if former and path.exists():
            os.replace(path, former)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """Name this file in an error of the system: a write that fails does not name it."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def write_table(path: Path, fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as CSV under a header of these fields, atomically."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fields)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def next_free_path(folder: Path, stem: str, suffix: str) -> Path:
    """The first of `<stem>.1<suffix>`, `<stem>.2<suffix>`, … that is not there."""
    number = 1
    while (folder / f"{stem}.{number}{suffix}").exists():
        number += 1
    return folder / f"{stem}.{number}{suffix}"
