"""One split of a prepared folder, mapped into memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.files import REMAKE, PreparedDataError, unreadable
from datamodules.prepared.layout import Fault, structure_fault


@dataclass(frozen=True)
class Split:
    """One split, memory-mapped.

    Attributes:
        tokens: `(total,)` uint8 or int16.
        offsets: `(documents + 1,)` int64; document i is `tokens[offsets[i]:offsets[i + 1]]`.
        labels: `(examples,)` uint8 or int16; an example has one document, or two that follow each other.
        names_path: the examples' names, a line each; None where their place in the split is their name.
        token_labels: if True, labels are `(total,)` int16, one for each token, and an example is one document.

    Raises:
        PreparedDataError: for offsets that are not those of documents end to end, as many for each label.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    names_path: Path | None = None
    token_labels: bool = False

    def __post_init__(self) -> None:
        self.refuse(structure_fault(self.tokens, self.offsets, self.labels, self.token_labels))

    def refuse(self, fault: Fault | None) -> None:
        """Say what is wrong with one of the arrays, if anything is.

        Raises:
            PreparedDataError: naming its file.
        """
        if fault:
            where = getattr(getattr(self, fault.array), "filename", None) or fault.array
            raise PreparedDataError(f"{where} {fault.what}. {REMAKE}")

    def __len__(self) -> int:
        return len(self.offsets) - 1 if self.token_labels else len(self.labels)

    @property
    def num_documents(self) -> int:
        """Documents an example."""
        return (len(self.offsets) - 1) // len(self)

    @property
    def lengths(self) -> np.ndarray:
        """`(examples, num_documents)` int64."""
        return np.diff(self.offsets).reshape(len(self), self.num_documents)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the files again, in place of a copy of what is in them."""
        arrays = (self.tokens, self.offsets, self.labels)
        paths = [array.filename for array in arrays if isinstance(array, np.memmap)]
        if not paths:
            return Split, (*arrays, self.names_path, self.token_labels)
        return map_split, (paths, self.names_path, tuple(array.dtype.name for array in arrays), self.token_labels)

    def names(self) -> list[str]:
        """Return the name of each example, from its place in the source.

        Raises:
            PreparedDataError: when the file of names is no UTF-8, or has not one line an example.
        """
        if self.names_path is None:
            return [str(number) for number in range(len(self))]
        try:
            names = self.names_path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise unreadable(self.names_path, error) from error
        if len(names) != len(self):
            raise PreparedDataError(f"{self.names_path} has {len(names):,} lines, expected {len(self):,}. {REMAKE}")
        return names


def map_split(paths: list[Path], names_path: Path | None, dtypes: tuple[str, ...], token_labels: bool) -> Split:
    """From the paths of tokens, offsets and labels, and their dtypes.

    Raises:
        PreparedDataError: as `Split`, and for a file that cannot be mapped.
    """
    tokens, offsets, labels = (_map_array(path, dtype) for path, dtype in zip(paths, dtypes, strict=True))
    return Split(tokens, offsets, labels, names_path, token_labels)


def _map_array(path: Path, dtype: str) -> np.ndarray:
    try:
        return np.memmap(path, dtype, "r")
    except (OSError, ValueError) as error:  # the latter for an empty file, or one that is cut in a number
        raise unreadable(path, error) from error
