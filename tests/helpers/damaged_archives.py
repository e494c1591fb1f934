"""Members that an archive of reviews should not have, appended to one that is whole."""

import gzip
import io
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trials import ACCEPTED, REFUSED, PathChange, Special

REVIEW = "train/neg/700_1.txt"
OTHER = "train/neg/701_1.txt"
SIZE, SPARSE_COUNT = 124, 386  # places in a header
CHECKSUM = slice(148, 156)


def _member(name: str, content: bytes = b"hostile", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    return member, content


def _link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return _member(name, b"", type=kind, linkname=target)


def _appended(*members: tuple[tarfile.TarInfo, bytes], **settings: Any) -> PathChange:
    def change(path: Path) -> None:
        with tarfile.open(path, "a", **settings) as archive:
            for member, content in members:
                archive.addfile(member, io.BytesIO(content))

    return change


def _header(change: Callable[[bytearray], None], name: str = REVIEW, kind: bytes = tarfile.REGTYPE) -> PathChange:
    """One more member whose header is written by hand; its checksum is right."""

    def append(path: Path) -> None:
        member, content = _member(name, b"12 path=x\n" * 60, type=kind)
        header = bytearray(member.tobuf(tarfile.USTAR_FORMAT))
        change(header)
        header[CHECKSUM] = b" " * 8
        header[CHECKSUM] = b"%06o\0 " % sum(header)
        with tarfile.open(path) as archive:
            end = max(found.offset_data + -(-found.size // 512) * 512 for found in archive.getmembers())
        block = bytes(header) + content.ljust(1024, b"\0")
        path.write_bytes(path.read_bytes()[:end] + block + bytes(10240))

    return append


def _size(size: int) -> Callable[[bytearray], None]:
    """In the notation for sizes that octal digits cannot hold."""

    def change(header: bytearray) -> None:
        header[SIZE : SIZE + 12] = (b"\x80" if size >= 0 else b"\xff") + size.to_bytes(11, "big", signed=True)

    return change


def _sparse(header: bytearray) -> None:
    """A hole of an exbibyte after the seven bytes that are there."""
    header[257:265] = b"ustar  \0"
    header[SPARSE_COUNT : SPARSE_COUNT + 24] = b"00000000000\0" + b"00000000007\0"
    header[483:495] = b"\x80" + struct.pack(">xxxQ", 1 << 60)


def _digits(header: bytearray) -> None:
    header[SIZE : SIZE + 12] = b"99999999999\0"


def _unnumbered(header: bytearray) -> None:
    header[100:108] = b"nomode!\0"


def _bomb(path: Path) -> None:
    """Compressed a thousandfold."""
    path.write_bytes(gzip.compress(path.read_bytes().rstrip(b"\0") + bytes(1 << 25)))


def _pax(**fields: str) -> PathChange:
    return _appended(_member(REVIEW, pax_headers=fields), format=tarfile.PAX_FORMAT)


ARCHIVES: dict[str, Special] = {
    # Names: nothing is unpacked, so that they only say which review it is.
    "an absolute name": (_appended(_member(f"/{REVIEW}")), ACCEPTED),
    "a name that climbs": (_appended(_member(f"../../{REVIEW}")), ACCEPTED),
    "a name that climbs in the middle": (_appended(_member("train/neg/../../../700_1.txt")), ACCEPTED),
    "a name of Windows": (_appended(_member("C:\\train\\neg\\700_1.txt"), _member(f"C:/{OTHER}")), ACCEPTED),
    "a name with a line end": (_appended(_member("train/neg/70\n0_1.txt"), _member(f"{OTHER}\n")), ACCEPTED),
    "a name that is not UTF-8": (_appended(_member("train/neg/\udce9_1.txt")), ACCEPTED),
    "a name with an escape sequence": (_appended(_member("train/neg/\x1b[2J\x07_1.txt")), ACCEPTED),
    "a name with a NUL": (_pax(path="train/neg/70\0_1.txt"), ACCEPTED),
    "a name of a megabyte": (
        _appended(_member(f"train/neg/{'7' * (1 << 20)}.txt"), format=tarfile.GNU_FORMAT),
        ACCEPTED,
    ),
    "a name of many folders": (_appended(_member("a/" * 5_000 + REVIEW), format=tarfile.GNU_FORMAT), ACCEPTED),
    "a name with an escape sequence, twice": (_appended(*[_member("train/neg/\x1b[2J\n_1.txt")] * 2), REFUSED),
    "no name": (_appended(_member("")), ACCEPTED),
    "a name that is there": (_appended(_member("train/neg/0_2.txt")), REFUSED),
    "a name that is there, elsewhere": (_appended(_member("/other/train/neg/0_2.txt")), REFUSED),
    "another name in an extended header": (_pax(path=f"../../../{REVIEW}"), ACCEPTED),
    # Links: one to an equal review is read; no other one leads anywhere.
    "a link to a file of the system": (_appended(_link(REVIEW, "/etc/passwd")), ACCEPTED),
    "a link that climbs": (_appended(_link(REVIEW, "../../../../etc/passwd")), ACCEPTED),
    "a link to a folder, and a file through it": (
        _appended(
            _link("train/neg", "/tmp"), _member(REVIEW), _link("train/pos/x", "/tmp"), _member("train/pos/x/a.txt")
        ),
        ACCEPTED,
    ),
    "a hard link to a file of the system": (_appended(_link(REVIEW, "/etc/passwd", tarfile.LNKTYPE)), REFUSED),
    "a hard link to a link to a file of the system": (
        _appended(_link(OTHER, "/etc/passwd"), _link(REVIEW, OTHER, tarfile.LNKTYPE)),
        REFUSED,
    ),
    "a hard link to itself": (_appended(_link(REVIEW, REVIEW, tarfile.LNKTYPE)), REFUSED),
    "links in a ring": (_appended(_link(OTHER, REVIEW), _link(REVIEW, f"aclImdb/{OTHER}", tarfile.LNKTYPE)), REFUSED),
    # Kinds that would wait, or be made by whoever unpacks as a superuser.
    "a pipe": (_appended(_member(REVIEW, b"", type=tarfile.FIFOTYPE)), ACCEPTED),
    "a device": (_appended(_member(REVIEW, b"", type=tarfile.CHRTYPE, devmajor=1, devminor=5)), ACCEPTED),
    "a disk": (_appended(_member(REVIEW, b"", type=tarfile.BLKTYPE, devmajor=8)), ACCEPTED),
    "a folder of a review's name": (_appended(_member(REVIEW, b"", type=tarfile.DIRTYPE)), ACCEPTED),
    "a kind that nobody knows": (_appended(_member(REVIEW, type=b"Z")), ACCEPTED),
    # Sizes.
    "a hole of an exbibyte": (_header(_sparse, kind=tarfile.GNUTYPE_SPARSE), ACCEPTED),
    "a size of an exbibyte": (_header(_size(1 << 60)), REFUSED),
    "a size of eight gigabytes": (_header(_size((1 << 33) - 1)), REFUSED),
    "a size below zero": (_header(_size(-1024)), REFUSED),
    "a size far below zero": (_header(_size(-(1 << 40))), REFUSED),
    "a size that leads back to itself": (_header(_size(-512), "loop"), REFUSED),
    "a size that is no number": (_header(_digits), REFUSED),
    "a mode that is no number": (_header(_unnumbered), REFUSED),
    "a long name of an exbibyte": (_header(_size(1 << 60), kind=tarfile.GNUTYPE_LONGNAME), REFUSED),
    "a long name of a size below zero": (_header(_size(-512), kind=tarfile.GNUTYPE_LONGNAME), REFUSED),
    "an extended header of an exbibyte": (_header(_size(1 << 60), kind=tarfile.XHDTYPE), REFUSED),
    "an extended header of a size below zero": (_header(_size(-1024), kind=tarfile.XHDTYPE), REFUSED),
    "an extended size below zero": (_pax(size="-1024"), REFUSED),
    "an extended size that is no number": (_pax(size="many"), REFUSED),
    "a sparse map that is no number": (_pax(**{"GNU.sparse.map": "0,x", "GNU.sparse.size": "7"}), REFUSED),
    "a sparse map of a hole": (_pax(**{"GNU.sparse.map": "0,7", "GNU.sparse.size": str(1 << 60)}), ACCEPTED),
    "zeros compressed a thousandfold": (_bomb, ACCEPTED),
}
