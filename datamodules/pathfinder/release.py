"""Reads Pathfinder as the LRA release and the public generator lay it out."""

import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
import torch

from datamodules.examples import Example, Skipped
from datamodules.files import PreparedDataError, read_bounded
from datamodules.sources.archives import damaged, read_label, reading
from datamodules.sources.pictures import read_picture

FOLDER = {"easy": "curv_baseline", "intermediate": "curv_contour_length_9", "hard": "curv_contour_length_14"}
LIMIT = 1 << 26  # bytes of a metadata file; the release's have some 100,000
LONGEST_NAME = 1_000  # letters
SplitRule = Literal["lra", "s4", "whole"]


class Listed(NamedTuple):
    """A picture that a metadata file lists: its name below the level's folder, and its label."""

    name: str
    label: int


def list_pictures(folder: Path) -> list[Listed]:
    """All pictures of a level, `imgs/<k>/sample_<i>.png`, by the number k of their metadata file.

    Raises:
        PreparedDataError: for metadata that cannot be read, naming file and row.
    """
    files = sorted((folder / "metadata").glob("[!.]*.npy"), key=lambda path: path.stem.zfill(9))  # 2 before 10
    if not files:
        raise PreparedDataError(f"{folder / 'metadata'} has no .npy file. Fix: check data.level and data.source")
    return [picture for path in files for picture in _read_metadata(path)]


def _read_metadata(path: Path) -> Iterator[Listed]:
    """Columns: folder, file, number, label, then how it was drawn; as text (the release) or as an array of strings."""
    with reading(path):
        data = read_bounded(path, LIMIT)
    is_array = data.startswith(b"\x93NUMPY")
    lines = [] if is_array else data.decode(errors="replace").splitlines()
    rows = _array_rows(path, data) if is_array else [line.split() for line in lines]
    if not any(rows):
        raise damaged(path, "it lists no picture")
    for number, row in enumerate(rows, start=1):
        where = f"{path}:{number}"
        if not row:
            continue
        if len(row) < 4:
            raise damaged(where, f"{len(row)} columns, expected folder, file, number and label at least")
        name = PurePosixPath(row[0], row[1])
        if not name.parts or len(str(name)) > LONGEST_NAME:
            raise damaged(where, f"no name of a picture: {str(name)[:100]!r}")
        if name.is_absolute() or ".." in name.parts:
            raise damaged(where, f"{name} lies outside {path.parent.parent}")
        yield Listed(str(name), read_label(where, row[3], 2))


def _array_rows(path: Path, data: bytes) -> list[list[str]]:
    try:
        array = np.load(BytesIO(data), allow_pickle=False).astype(str)
        if array.itemsize and (np.ascontiguousarray(array).view(np.uint32) > sys.maxunicode).any():
            raise ValueError("not Unicode")  # Python would break on it much later
    except Exception as error:  # damage shows in many ways; an array of objects is refused
        raise damaged(path, f"not an array of strings or numbers ({type(error).__name__})") from error
    if array.ndim != 2:
        raise damaged(path, f"an array of shape {array.shape}, expected a row a picture")
    return array.tolist()


def read_listed(folder: Path, side: int, listed: Listed) -> Example | Skipped:
    """The picture as a sequence of `side²` pixels."""
    pixels = read_picture(folder / listed.name, side, "L")
    if isinstance(pixels, Skipped):
        return pixels
    return Example((pixels.reshape(-1),), listed.label, listed.name)


def split_pictures(pictures: list[Listed], rule: SplitRule) -> dict[str, list[Listed]]:
    """80 / 10 / 10 %, unless the rule says otherwise.

    Args:
        pictures: all of them.
        rule: `lra` slices in the order of the list; LRA itself slices after a shuffle by TensorFlow Datasets. `s4` is
            PyTorch's `random_split` with seed 42, as in the S4 code. `whole` uses all pictures as every set, to test a
            model that was trained on others.
    """
    if rule == "whole":
        return {"train": pictures, "val": pictures, "test": pictures}
    count = len(pictures)
    first, second = round(count * 0.8), round(count * 0.9)
    if rule == "s4":
        # What random_split does.
        order = torch.randperm(count, generator=torch.Generator().manual_seed(42)).tolist()
        pictures = [pictures[place] for place in order]
        first, second = count - 2 * (count // 10), count - count // 10
    return {"train": pictures[:first], "val": pictures[first:second], "test": pictures[second:]}
