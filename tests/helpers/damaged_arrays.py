"""What no task can have written into a prepared folder, though its `meta.json` agrees."""

from collections.abc import Callable

import numpy as np
from trials import ACCEPTED, REFUSED, PathChange, Special


def array(dtype: str, change: Callable[[np.ndarray], np.ndarray]) -> PathChange:
    """Other numbers in a prepared array."""
    return lambda path: path.write_bytes(change(np.fromfile(path, dtype)).tobytes())


def at(place: int, value: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(numbers: np.ndarray) -> np.ndarray:
        numbers[place] = value
        return numbers

    return change


def _text(change: Callable[[str], str]) -> PathChange:
    return lambda path: path.write_text(change(path.read_text()))


TOKENS: dict[str, Special] = {
    "padding": (array("u1", at(7, 0)), REFUSED),
    "the first id that is none": (array("u1", at(-1, 16)), REFUSED),
    "the last id that is one": (array("u1", at(-1, 15)), ACCEPTED),
    "all padding": (array("u1", np.zeros_like), REFUSED),
    "two bytes a token": (array("u1", lambda tokens: tokens.astype("<u2")), REFUSED),
    "text": (array("u1", lambda tokens: tokens + 48), REFUSED),
}
OFFSETS: dict[str, Special] = {
    "not from 0": (array("i8", at(0, 1)), REFUSED),
    "from below 0": (array("i8", at(0, -1)), REFUSED),
    "one less at the end": (array("i8", lambda offsets: np.append(offsets[:-1], offsets[-1] - 1)), REFUSED),
    "one more at the end": (array("i8", lambda offsets: np.append(offsets[:-1], offsets[-1] + 1)), REFUSED),
    "the last one left out": (array("i8", lambda offsets: offsets[:-1]), REFUSED),
    "the last one twice": (array("i8", lambda offsets: np.append(offsets, offsets[-1])), REFUSED),
    "a fall": (array("i8", at(5, 0)), REFUSED),
    "a place far behind the end": (array("i8", at(5, 2**62)), REFUSED),
    "the largest number": (array("i8", at(5, 2**63 - 1)), REFUSED),
    "the smallest number": (array("i8", at(5, -(2**63))), REFUSED),
    "an empty document": (array("i8", lambda offsets: np.r_[offsets[:5], offsets[4], offsets[6:]]), REFUSED),
    "four bytes an offset": (array("i8", lambda offsets: offsets.astype("<i4")), REFUSED),
    "the other byte order": (array("i8", lambda offsets: offsets.astype(">i8")), REFUSED),
    "numbers with a point": (array("i8", lambda offsets: offsets.astype("f8")), REFUSED),
    "lengths": (array("i8", np.diff), REFUSED),
}
LABELS: dict[str, Special] = {
    "the first class that is none": (array("u1", at(3, 10)), REFUSED),
    "the largest number": (array("u1", at(-1, 255)), REFUSED),
    "one less": (array("u1", lambda labels: labels[:-1]), REFUSED),
    "one more": (array("u1", lambda labels: np.append(labels, 1)), REFUSED),
    "half of them": (array("u1", lambda labels: labels[::2]), REFUSED),
    "eight bytes a label": (array("u1", lambda labels: labels.astype("i8")), REFUSED),
    "digits": (array("u1", lambda labels: labels + 48), REFUSED),
}
NAMES: dict[str, Special] = {
    "one line less": (_text(lambda text: text[: text[:-1].rindex("\n") + 1]), REFUSED),
    "one line more": (_text(lambda text: f"{text}basic_train.tsv:99\n"), REFUSED),
    "a line separator of Unicode": (_text(lambda text: text.replace(":", "\u2028", 1)), REFUSED),
    "a form feed": (_text(lambda text: text.replace(":", "\f", 1)), REFUSED),
    "Latin-1": (lambda path: path.write_bytes(path.read_bytes().replace(b":", b"\xe9")), REFUSED),
    "half a character": (
        lambda path: path.write_bytes(path.read_bytes().replace(b":", b"\xed\xa0\x80")),
        REFUSED,
    ),
    "names that climb": (_text(lambda text: text.replace("basic_train.tsv", "../../etc/passwd")), ACCEPTED),
    "empty names": (_text(lambda text: "\n" * text.count("\n")), ACCEPTED),
}
