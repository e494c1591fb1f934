"""What goes wrong with one kind of file alone, and with what is no file: what changes it, and what must come of it."""

import os
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from damaged_archives import ARCHIVES
from damaged_arrays import LABELS, NAMES, OFFSETS, TOKENS, array, at
from damaged_kinds import KINDS, Kind
from damaged_meta import META
from PIL import Image as PillowImage
from trials import ACCEPTED, REFUSED, PathChange, Special

SPARSE = 1 << 27  # bytes, more than any file that is read as a whole may have


def specials(title: str) -> dict[str, Special]:
    """Those of a kind of file, with `REFUSED` or `ACCEPTED`."""
    kind = KINDS[title]
    return {**_of_any_file(kind), **_SPECIALS.get(title, {})}


def _of_any_file(kind: Kind) -> dict[str, Special]:
    """Something that is no file in its place."""
    is_skipped = kind.file.endswith("2.png")  # a picture that is listed and not there
    review = kind.file.endswith(".txt") and not kind.is_prepared
    is_one_of_many = is_skipped or review or "metadata" in kind.file
    changes: dict[str, Special] = {
        "missing": (Path.unlink, ACCEPTED if is_one_of_many else REFUSED),
        "a folder": (_instead(Path.mkdir), REFUSED),
        "a pipe": (_instead(os.mkfifo), REFUSED),
        "a link to nothing": (_instead(lambda path: path.symlink_to("nothing")), ACCEPTED if is_skipped else REFUSED),
        "a link to itself": (_instead(lambda path: path.symlink_to(path)), REFUSED),
        "a link to a device": (_instead(lambda path: path.symlink_to("/dev/zero")), REFUSED),
    }
    if kind.is_prepared:
        changes["a link to elsewhere"] = (_linked_elsewhere, REFUSED)
    if not kind.agreeing and "tar" not in kind.tree:
        changes["many zeros after it"] = (lambda path: os.truncate(path, SPARSE), ACCEPTED if review else REFUSED)
    return changes


def _instead(make: Callable[[Path], Any]) -> PathChange:
    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return change


def _linked_elsewhere(path: Path) -> None:
    """To the very content, in a folder that nobody named."""
    folder = path.parent if path.name == "meta.json" else path.parents[1]
    elsewhere = folder.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def _bytes(content: bytes) -> PathChange:
    return lambda path: path.write_bytes(content)


def _row(content: bytes) -> PathChange:
    """In place of the third row."""

    def change(path: Path) -> None:
        rows = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join([*rows[:2], content + b"\n", *rows[3:]]))

    return change


class Hostile:
    """Makes a file beside itself when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name("made")

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def _pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"data": Hostile(path), "labels": [0]}, protocol=2))


def _pickled_command(path: Path) -> None:
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(path.with_name("made")).encode() + b"'\ntR.")


def _pickled_array(path: Path) -> None:
    np.save(path, np.array([[Hostile(path)] * 5], dtype=object), allow_pickle=True)


def _saved(content: Any) -> PathChange:
    """An array, as NumPy saves it."""

    def change(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, content)

    return change


def _header(text: bytes) -> PathChange:
    """An array's file that is a header alone."""
    return _bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)


def _picture(mode: str, side: int, format: str, **settings: Any) -> PathChange:
    def change(path: Path) -> None:
        with path.open("wb") as file:
            PillowImage.new(mode, (side, side)).save(file, format, **settings)

    return change


def _claimed(path: Path) -> None:
    """A PNG that says of itself that it has 30,000 × 30,000 pixels."""
    header = b"IHDR" + (30_000).to_bytes(4, "big") * 2 + b"\x08\x00\x00\x00\x00"
    length = (13).to_bytes(4, "big")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + length + header + zlib.crc32(header).to_bytes(4, "big"))


def _postscript(path: Path) -> None:
    """A program, which Pillow would hand to Ghostscript."""
    program = b"(made) (w) file closefile\n"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n" + program + b"%%EOF\n")


_LISTOPS: dict[str, Special] = {
    "a label of 5,000 digits": (_row(b"[MAX 1 ]\t" + b"1" * 5_000), REFUSED),
    "a label in other digits": (_row("[MAX 1 ]\t\u0661".encode()), REFUSED),
    "a label beyond the classes": (_row(b"[MAX 1 ]\t10"), REFUSED),
    "a label that is not a number": (_row(b"[MAX 1 ]\tnan"), REFUSED),
    "a word of a megabyte": (_row(b"x" * (1 << 20) + b"\t1"), REFUSED),
    "an escape sequence": (_row(b"\x1b[2J ]\t1"), REFUSED),
    "brackets alone": (_row(b"( ( ( ) ) )\t1"), REFUSED),
    "padding": (_row(b"[MAX <pad> ]\t1"), REFUSED),
    "a formula of a spreadsheet": (_row(b"=1+1\t1"), REFUSED),
    "too many tokens": (_row(b"[SM " + b"1 " * 2_000 + b"]\t1"), REFUSED),
    "quotes": (_row(b'"[MAX 1 ]"\t"1"'), REFUSED),
    "a comma for a tab": (_row(b"[MAX 1 ],1"), REFUSED),
}
_RETRIEVAL: dict[str, Special] = {
    "a label of 5,000 digits": (_row(b"1" * 5_000 + b"\tA\tB\tx\ty"), REFUSED),
    "a third class": (_row(b"2.0\tA\tB\tx\ty"), REFUSED),
    "a label below 0": (_row(b"-1.0\tA\tB\tx\ty"), REFUSED),
    "a label that is not a number": (_row(b"nan\tA\tB\tx\ty"), REFUSED),
    "six columns": (_row(b"1.0\tA\tB\tx\ty\tz"), REFUSED),
    "NULs": (_row(b"1.0\tA\0\tB\0\t\0\t\0"), ACCEPTED),
    "identifiers that climb": (_row(b"1.0\t../../etc\t/etc/passwd\tx\ty"), ACCEPTED),
    "identifiers of escape sequences": (_row(b"1.0\t\x1b[2J\t\xff\x85\x0c\tx\ty"), ACCEPTED),
    "no text": (_row(b"1.0\tA\tB\t\t"), ACCEPTED),
    "texts of a megabyte": (_row(b"1.0\tA\tB\t" + b"x" * (1 << 20) + b"\t" + b"y" * (1 << 20)), ACCEPTED),
}
_PICTURE: dict[str, Special] = {
    "a PostScript program": (_postscript, ACCEPTED),
    "another size": (_picture("L", 33, "PNG"), REFUSED),
    "a size of a billion pixels": (_claimed, ACCEPTED),
    "sixteen bits": (_picture("I;16", 32, "PNG"), ACCEPTED),
    "a palette": (_picture("P", 32, "PNG"), ACCEPTED),
    "a JPEG": (_picture("L", 32, "JPEG"), ACCEPTED),
    "a TIFF": (_picture("L", 32, "TIFF"), ACCEPTED),
    "a GIF": (_picture("L", 32, "GIF"), ACCEPTED),
    "moving": (_picture("L", 32, "PNG", save_all=True, append_images=[PillowImage.new("L", (32, 32), 9)]), ACCEPTED),
}
_BATCH: dict[str, Special] = {
    "a pickle that makes a file": (_pickled, REFUSED),
    "a pickle that runs a command": (_pickled_command, REFUSED),
    "a pickle of nothing": (_bytes(pickle.dumps(None)), REFUSED),
    "a pickle without data": (_bytes(pickle.dumps({})), REFUSED),
    "a pickle that refers to itself": (_bytes(b"(lp0\ng0\na."), REFUSED),
}
_METADATA: dict[str, Special] = {
    "a pickle that makes a file": (_pickled, REFUSED),
    "an array of objects": (_pickled_array, REFUSED),
    "a name that climbs": (_row(b"imgs/../../../.. passwd 2 0 1"), REFUSED),
    "an absolute name": (_row(b"/etc passwd 2 0 1"), REFUSED),
    "a name with a NUL": (_row(b"imgs/1 x\0.png 2 0 1"), ACCEPTED),
    "a name that is too long": (_row(b"imgs/1 " + b"x" * 5_000 + b" 2 0 1"), REFUSED),
    "the folder itself": (_row(b". . 2 0 1"), REFUSED),
    "a third class": (_row(b"imgs/1 sample_2.png 2 2 1"), REFUSED),
    "an array of numbers": (_saved(np.zeros((10, 5))), REFUSED),
    "an array of one dimension": (_saved(np.zeros(10)), REFUSED),
    "an array of no dimension": (_saved(np.array("imgs/1")), REFUSED),
    "an array of pairs": (_saved(np.zeros((2, 5), dtype="i4,f8")), REFUSED),
    "an array of dates": (_saved(np.zeros((2, 5), dtype="M8[s]")), REFUSED),
    "an array of half characters": (_saved(np.array([["imgs/1", "\ud800.png", "2", "0"]] * 20)), REFUSED),
    "a size beyond the memory": (
        _header(b"{'descr':'<U9','fortran_order':False,'shape':(9999999999999,5)}\n"),
        REFUSED,
    ),
    "a size below zero": (_header(b"{'descr':'<U9','fortran_order':False,'shape':(-1,5)}\n"), REFUSED),
    "code for a header": (_header(b"__import__('os').system('touch made')\n"), REFUSED),
    "a kind of number that calls": (_header(b"{'descr':'|O','fortran_order':False,'shape':(2,5)}\n"), REFUSED),
}
_REVIEW: dict[str, Special] = {
    "NULs alone": (_bytes(bytes(100)), ACCEPTED),
    "a megabyte": (_bytes(b"x" * (1 << 20)), ACCEPTED),
    "not UTF-8": (_bytes(bytes(range(256))), ACCEPTED),
    "line ends alone": (_bytes(b"\r\n\x85\x0c" * 9), ACCEPTED),
    "code": (_bytes(b"__import__('os').system('touch made')"), ACCEPTED),
}
_SPECIALS: dict[str, dict[str, Special]] = {
    "prepared tokens.bin, meta.json agreeing": TOKENS,
    "offsets.bin of pairs, meta.json agreeing": OFFSETS,
    "offsets.bin of images, meta.json agreeing": {**OFFSETS, "a longer image": (array("i8", at(5, 5_121)), REFUSED)},
    "prepared offsets.bin, meta.json agreeing": OFFSETS,
    "prepared labels.bin, meta.json agreeing": LABELS,
    "prepared names.txt, meta.json agreeing": NAMES,
    "prepared meta.json": META,
    "ListOps, TSV": _LISTOPS,
    "Retrieval, TSV": _RETRIEVAL,
    "CIFAR-10, batch": _BATCH,
    "CIFAR-10, class names": _BATCH,
    "CIFAR-10, PNG": _PICTURE,
    "Pathfinder, PNG": _PICTURE,
    "IMDb, review": _REVIEW,
    "IMDb, tar": ARCHIVES,
    "Pathfinder, metadata as text": _METADATA,
}
