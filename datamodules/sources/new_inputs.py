"""New inputs, which `predict` reads from `data.predict_source`."""

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from datamodules.examples import Example, Skipped, pack
from datamodules.files import PreparedDataError, open_regular
from datamodules.prepared.split import Split
from datamodules.sources.pictures import read_picture

PICTURES = (".png", ".jpg", ".jpeg")


def read_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """The lines of a file, without their ends: (`file:line`, line). A byte order mark is left out.

    Raises:
        PreparedDataError: for a file that cannot be read or is UTF-16, or a line without content.
    """
    try:
        with open_regular(path) as file:
            content = file.read()
    except OSError as error:
        raise unusable(str(path), error.strerror or str(error)) from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise unusable(str(path), "UTF-16 text, but models read UTF-8")
    lines = content.removeprefix(codecs.BOM_UTF8).splitlines()
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        if not line.strip():
            raise unusable(where, "an empty line")
        yield where, line


def read_pairs(path: Path, max_bytes: int) -> Iterator[Example]:
    """The lines of a file as two texts with a tab between them, each cut to this many bytes.

    Raises:
        PreparedDataError: as `read_lines`, and for another number of texts or an empty one.
    """
    for where, line in read_lines(path):
        texts = line.split(b"\t")
        if len(texts) != 2 or not all(texts):
            raise unusable(where, "expected two texts with a tab between them")
        documents = tuple(np.frombuffer(text[:max_bytes], dtype=np.uint8) for text in texts)
        yield Example(documents, 0, where.rpartition("/")[2])


def read_pictures(path: Path, side: int, mode: Literal["L", "RGB"]) -> Iterator[tuple[str, np.ndarray]]:
    """A picture, or those of a folder by their names: (name, pixels `(side, side)` or `(side, side, 3)` uint8).

    Raises:
        PreparedDataError: for a folder without pictures, or a picture of another size or that cannot be read.
    """
    try:
        # macOS writes hidden files, such as ._0.png for 0.png.
        visible = (file for file in path.glob("[!.]*") if file.suffix.lower() in PICTURES)
        files = sorted(visible) if path.is_dir() else [path]
    except OSError as error:
        raise unusable(str(path), error.strerror or str(error)) from error
    for file in files:
        pixels = read_picture(file, side, mode)
        if isinstance(pixels, Skipped):
            raise unusable(str(file), pixels.reason.removeprefix(f"{file}: "))
        yield file.name, pixels


def as_split(path: Path, examples: Iterable[Example], token_labels: bool = False) -> tuple[Split, list[str]]:
    """Return these examples as a split in memory, and their names. Their labels have no meaning.

    Raises:
        PreparedDataError: when there is no example.
    """
    chunk = pack(examples)
    if len(chunk.lengths) == 0:
        raise unusable(str(path), "nothing to predict")
    offsets = np.concatenate([[0], np.cumsum(chunk.lengths)])
    return Split(chunk.tokens, offsets, chunk.labels, token_labels=token_labels), list(chunk.names)


def unusable(where: str, what: str) -> PreparedDataError:
    """The error that names the place in `data.predict_source`."""
    return PreparedDataError(f"data.predict_source: {what} (got {where}). Fix: change it, or name another file")
