"""Shared by the readers of raw files: paths, errors, and the split of a validation set."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.progress import DownloadColumn

from datamodules.examples import progress_bar
from datamodules.files import PreparedDataError, open_regular, printable

_LABEL = re.compile(r"([0-9]{1,9})(?:\.0*)?")
LONGEST_LINE = 1 << 26  # bytes; a row of Retrieval holds two whole papers
RELEASE = "the Long Range Arena release (https://storage.googleapis.com/long-range-arena/lra_release.gz)"


def source_path(source: str) -> Path:
    """The absolute path that `data.source` names.

    Raises:
        PreparedDataError: for a name that no path can have.
    """
    try:
        path = Path(source).expanduser().resolve()
        path.exists()  # refuses a name that is too long, or a folder that may not be read
    except (RuntimeError, OSError, ValueError) as error:  # the last for a NUL, or half a character
        reason = getattr(error, "strerror", None) or error
        raise PreparedDataError(
            f"data.source={source}: {reason}. Fix: name a file or folder that can be read."
        ) from error
    return path


def damaged(where: Path | str, what: str) -> PreparedDataError:
    """Return the error that names the corrupt place of a source and the fix."""
    line = " ".join(what.split())  # what Python's readers say may have several lines
    return PreparedDataError(
        f"{where}: {printable(line)}. Fix: fetch or unpack it again, or set data.source to a complete copy."
    )


def source_name(source: str | None) -> str | None:
    """Return the name of a source as a prepared folder keeps it: equal for all spellings of one path."""
    return None if source is None else str(source_path(source))


def find_in_release(source: Path, folder: str, marker: str) -> Path:
    """Find the folder that holds `marker`: `source` itself or `folder` below it, however the release was unpacked.

    The release has two nested roots. If both have the folder, the inner one is used, as in the S4 code.

    Raises:
        PreparedDataError: saying where it was looked for and what to set.
    """
    places = [source / "lra_release/lra_release" / folder, source / "lra_release" / folder, source / folder, source]
    with reading(source):
        for place in places:
            if (place / marker).exists():
                return place
    raise PreparedDataError(
        f"no {marker} in {source} or its {folder}/. Fix: set data.source to the folder where {RELEASE} is unpacked; "
        f"of that archive this takes */{folder}/*."
    )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say which file could not be read."""
    try:
        yield
    except OSError as error:
        raise PreparedDataError(f"cannot read {path}: {error.strerror or error}. Fix: check data.source.") from error


def read_rows(
    path: Path, num_columns: int, description: str, header: list[bytes] | None = None
) -> Iterator[tuple[str, list[bytes]]]:
    """The rows of a tab-separated file without quoting, one at a time: (`file:line`, columns).

    Args:
        path: the file.
        num_columns: number of columns of every row.
        description: shown next to the progress bar.
        header: what the first row must be, if it is not data.

    Raises:
        PreparedDataError: for a row with another number of columns, another header, or a file that cannot be read.
    """
    with reading(path), open_regular(path) as file, progress_bar(DownloadColumn()) as progress:
        bar = progress.add_task(description, total=path.stat().st_size)
        number, line = 0, b"\n"
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
            progress.update(bar, advance=len(line))
            columns = line.rstrip(b"\r\n").split(b"\t")
            where = f"{path}:{number}"
            if len(line) > LONGEST_LINE:
                raise damaged(where, f"more than {LONGEST_LINE:,} bytes in a line")
            if header and number == 1:
                if columns != header:
                    raise damaged(where, f"expected the header {b' '.join(header).decode()}")
                continue
            if len(columns) != num_columns:
                raise damaged(where, f"{len(columns)} tab-separated columns, expected {num_columns}")
            yield where, columns
        if number <= (1 if header else 0):
            raise damaged(path, "no example")
        if not line.endswith(b"\n"):
            said = f"{path}:{number}: the last row has no line end; is the file complete?"
            progress.console.print(said, soft_wrap=True, markup=False, emoji=False)


def read_label(where: str, text: str | bytes, num_classes: int) -> int:
    """Parse a label such as `1` or `1.0`.

    Raises:
        PreparedDataError: for an invalid class, naming the place.
    """
    shown = text.decode(errors="backslashreplace") if isinstance(text, bytes) else text
    found = _LABEL.fullmatch(shown)
    if not found or int(found[1]) >= num_classes:
        raise damaged(where, f"label {shown[:100]!r} is not one of 0 ... {num_classes - 1}")
    return int(found[1])


def cut_val(labels: Sequence[int], val_size: int, seed: int) -> tuple[list[int], list[int]]:
    """Split into training and validation examples at random, stratified by class; return their indices.

    Args:
        labels: labels of all examples.
        val_size: examples to draw, less than there are.
        seed: names the draw.

    Raises:
        PreparedDataError: when nothing would be left to train on.
    """
    if val_size >= len(labels):
        raise PreparedDataError(f"data.val_size={val_size} leaves none of {len(labels)} examples to train on")
    order = np.random.default_rng([seed, len(labels)]).permutation(len(labels))
    # Sorted by class, every k-th is validation: the classes have their shares, to within one example.
    order = order[np.argsort(np.asarray(labels)[order], kind="stable")]
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[order[np.linspace(0, len(labels), val_size, endpoint=False).astype(int)]] = True
    return np.flatnonzero(~chosen).tolist(), np.flatnonzero(chosen).tolist()


def sizes_of(paths: Iterable[Path], root: Path) -> dict[str, int]:
    """Size of each file that is there, by its name below `root`; for a folder the number of its visible files."""
    return {
        str(path.relative_to(root)): path.stat().st_size if path.is_file() else len(list(path.glob("[!.]*")))
        for path in paths
        if path.exists()
    }
