"""What a prepared folder's `meta.json` may say: each field's type, and no name that leads out of the folder."""

import json
import re
import reprlib
from collections.abc import Mapping
from typing import Any

from datamodules.files import printable

ARRAYS = ("tokens", "offsets", "labels")
FILES = (*ARRAYS, "names")
SPLITS = ("train", "val", "test")
FIELDS = ("format", "task", "settings", "source", "splits", "skipped")
_SHA256 = re.compile("[0-9a-f]{64}")


def parse_meta(data: bytes) -> Any:
    """The JSON value, of UTF-8 without a byte-order mark.

    Raises:
        ValueError: for anything else; also for a key that is there twice, NaN or an infinity, and for too deep a nest.
    """
    try:
        return json.loads(data.decode(), object_pairs_hook=_mapping_of, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _mapping_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("a key is there twice")
    return mapping


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a valid number")


def check_meta(meta: Mapping[str, Any]) -> None:
    """Check that all of the fields are there, and no other.

    Raises:
        ValueError: naming the field, its value and what is expected.
    """
    _expect(set(meta) == set(FIELDS), "fields", sorted(meta), f"those of {', '.join(FIELDS)}")
    _expect(isinstance(meta["task"], str), "task", meta["task"], "a name")
    for field in ("settings", "source", "splits", "skipped"):
        _expect(isinstance(meta[field], dict), field, meta[field], "a mapping")
    for name, size in meta["source"].items():
        _expect(_is_size(size), f"source.{name}", size, "a size")
    for split, files in meta["splits"].items():
        _check_split(split, files)
    for split, reasons in meta["skipped"].items():
        _expect(split in SPLITS, f"skipped.{split}", reasons, f"only the splits {', '.join(SPLITS)}")
        are_texts = isinstance(reasons, list) and all(isinstance(reason, str) for reason in reasons)
        _expect(are_texts, f"skipped.{split}", reasons, "a list of texts")


def _check_split(split: str, files: Any) -> None:
    field = f"splits.{split}"
    _expect(split in SPLITS, field, files, f"only the splits {', '.join(SPLITS)}")
    is_whole = isinstance(files, dict) and set(ARRAYS) <= files.keys() <= set(FILES)
    _expect(is_whole, field, files, f"the files {', '.join(ARRAYS)}, and names where there are any")
    for name, file in files.items():
        described = isinstance(file, dict) and file.keys() == {"bytes", "sha256"}
        _expect(described, f"{field}.{name}", file, "bytes and sha256")
        _expect(_is_size(file["bytes"]), f"{field}.{name}.bytes", file["bytes"], "a size")
        digest = file["sha256"]
        is_digest = isinstance(digest, str) and _SHA256.fullmatch(digest)
        _expect(bool(is_digest), f"{field}.{name}.sha256", digest, "64 hexadecimal digits")


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _expect(holds: bool, field: str, value: Any, expected: str) -> None:
    if not holds:
        raise ValueError(f"{printable(field[:100])} is {reprlib.repr(value)}, expected {expected}")
