"""Ways to damage the bytes of any file, the same every time: what disks, transfers, editors and other people do."""

import base64
import gzip
import hashlib
import random
from collections.abc import Callable

Damage = Callable[[bytes], bytes]
HTML = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>Not Found</body></html>\n"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"5" * 64 + b"\nsize 12345\n"
FLIPS = 6  # random places of a bit


def damages(seed: int = 0) -> dict[str, Damage]:
    """Pure functions by what they do; `seed` names the random places and bytes."""
    return {**_cuts(), **_flips(seed), **_blocks(seed), **_texts(), **_strangers(seed)}


def _cuts() -> dict[str, Damage]:
    return {
        "empty": lambda data: b"",
        "one byte": lambda data: data[:1],
        "cut at a quarter": lambda data: data[: len(data) // 4],
        "cut at the half": lambda data: data[: len(data) // 2],
        "cut at three quarters": lambda data: data[: len(data) * 3 // 4],
        "cut at a block of 512": lambda data: data[: len(data) // 1024 * 512],
        "last byte off": lambda data: data[:-1],
        "last eight bytes off": lambda data: data[:-8],
        "first byte off": lambda data: data[1:],
    }


def _flips(seed: int) -> dict[str, Damage]:
    places = {"the start": 0.0, "a quarter": 0.25, "the middle": 0.5, "the end": 1.0}
    chosen = random.Random(seed)
    places |= {f"random place {number}": chosen.random() for number in range(FLIPS)}
    return {f"a bit flipped at {name}": _flip(place, chosen.randrange(8)) for name, place in places.items()}


def _flip(place: float, bit: int) -> Damage:
    """At this share of the way from the first to the last byte."""

    def damage(data: bytes) -> bytes:
        if not data:
            return data
        at = round(place * (len(data) - 1))
        return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]

    return damage


def _blocks(seed: int) -> dict[str, Damage]:
    """The middle third is another one, or there more often, or not at all."""
    return {
        "zeros in the middle": _middle(lambda block: bytes(len(block))),
        "ones in the middle": _middle(lambda block: b"\xff" * len(block)),
        "random bytes in the middle": _middle(lambda block: _random(seed, block)),
        "middle doubled": _middle(lambda block: block * 2),
        "middle left out": _middle(lambda block: b""),
        "middle reversed": _middle(lambda block: block[::-1]),
        "NULs inserted": _middle(lambda block: bytes(16) + block),
        "bytes of a pair exchanged": lambda data: bytes(data[place ^ 1] for place in range(len(data) // 2 * 2)),
        "halves exchanged": lambda data: data[len(data) // 2 :] + data[: len(data) // 2],
        "reversed": lambda data: data[::-1],
        "all zeros": lambda data: bytes(len(data)),
        "all ones": lambda data: b"\xff" * len(data),
        "all random": lambda data: _random(seed, data),
    }


def _middle(change: Damage) -> Damage:
    def damage(data: bytes) -> bytes:
        third = len(data) // 3
        return data[:third] + change(data[third : 2 * third]) + data[2 * third :]

    return damage


def _random(seed: int, data: bytes) -> bytes:
    """As many bytes, drawn from the seed and the data."""
    return random.Random(hashlib.sha256(b"%d " % seed + data).digest()).randbytes(len(data))


def _texts() -> dict[str, Damage]:
    """What editors and transfers in text mode do."""
    return {
        "CRLF for LF": lambda data: data.replace(b"\n", b"\r\n"),
        "CR for LF": lambda data: data.replace(b"\n", b"\r"),
        "no line ends": lambda data: data.replace(b"\n", b""),
        "a blank line after each": lambda data: data.replace(b"\n", b"\n\n"),
        "spaces for tabs": lambda data: data.replace(b"\t", b" "),
        "high bits off": lambda data: bytes(byte & 0x7F for byte in data),
        "UTF-16": lambda data: data.decode("latin-1").encode("utf-16"),
        "UTF-8 of Latin-1": lambda data: data.decode("latin-1").encode(),
        "byte-order mark": lambda data: b"\xef\xbb\xbf" + data,
        "capitals": bytes.upper,
        "base64": base64.encodebytes,
    }


def _strangers(seed: int) -> dict[str, Damage]:
    """Something else in its place, around it or after it."""
    return {
        "gzip of it": lambda data: gzip.compress(data, mtime=0),
        "twice": lambda data: data * 2,
        "junk appended": lambda data: data + _random(seed, bytes(100)),
        "a byte appended": lambda data: data + b"\0",
        "junk before it": lambda data: _random(seed, bytes(8)) + data,
        "hello": lambda data: b"hello",
        "an HTML page": lambda data: HTML,
        "a pointer of Git LFS": lambda data: LFS_POINTER,
        "a very long line": lambda data: data + b"x" * 200_000,
        "many line ends": lambda data: data + b"\n" * 5_000,
        "two million brackets": lambda data: b"[" * 2_000_000,
    }
