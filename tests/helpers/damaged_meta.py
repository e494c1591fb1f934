"""What the `meta.json` of somebody else's folder can say."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trials import ACCEPTED, REFUSED, PathChange, Special

Change = Callable[[Any], Any]
ESCAPES = (
    "../../etc",
    "/etc",
    "..",
    ".",
    "",
    "train/../../../etc",
    "train\0",
    "\x1b[2J\n",
    "Train",
    "train ",
    "x" * 5_000,
    "validation",
)


def _changed(change: Change) -> PathChange:
    """Other content; the change works on a copy, or gives what takes its place."""

    def write(path: Path) -> None:
        meta = copy.deepcopy(json.loads(path.read_text()))
        given = change(meta)
        path.write_text(json.dumps(meta if given is None else given))

    return write


def _set(value: Any, *keys: str) -> PathChange:
    def change(meta: Any) -> None:
        for key in keys[:-1]:
            meta = meta[key]
        meta[keys[-1]] = value

    return _changed(change)


def _without(*keys: str) -> PathChange:
    def change(meta: Any) -> None:
        for key in keys[:-1]:
            meta = meta[key]
        del meta[keys[-1]]

    return _changed(change)


def _raw(old: str, new: str) -> PathChange:
    """Another text, which need not be JSON."""

    def write(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_bytes(text.replace(old, new, 1).encode("utf-8", "surrogatepass"))

    return write


def _renamed(split: str) -> PathChange:
    def change(meta: Any) -> None:
        meta["splits"][split] = meta["splits"].pop("train")

    return _changed(change)


def _beside(split: str) -> PathChange:
    def change(meta: Any) -> None:
        meta["splits"][split] = meta["splits"]["train"]

    return _changed(change)


TRAIN = ("splits", "train")
TOKENS = (*TRAIN, "tokens")
WRONG_SIZES = (-1, True, None, "300", 300.0, 300.5, 1e400, 10**4000, 2**63, [300], {"bytes": 300})
WRONG_DIGESTS = (None, 5, "", "0" * 63, "0" * 65, "g" * 64, "A" * 64, "0" * 64 + "\n", ["0" * 64], "../" * 21 + "x")
WRONG_MAPPINGS = (None, 1, [], "text", [["train", {}]])
FIELDS = ("format", "task", "settings", "source", "splits", "skipped")

META: dict[str, Special] = {
    "nothing changed": (_changed(lambda meta: None), ACCEPTED),
    **{f"no {field}": (_without(field), REFUSED) for field in FIELDS},
    **{f"no {field} of tokens": (_without(*TOKENS, field), REFUSED) for field in ("bytes", "sha256")},
    **{f"no {name} of train": (_without(*TRAIN, name), REFUSED) for name in ("tokens", "offsets", "labels")},
    "no train": (_without(*TRAIN), REFUSED),
    "no splits": (_set({}, "splits"), REFUSED),
    "another field": (_set(1, "comment"), REFUSED),
    "another field of tokens": (_set("/etc/passwd", *TOKENS, "path"), REFUSED),
    **{f"{value!r} in all": (_changed(lambda meta, value=value: value), REFUSED) for value in (1, "text", [], {}, 1.5)},
    "null in all": (lambda path: path.write_text("null"), REFUSED),
    **{
        f"format {value!r}": (_set(value, "format"), REFUSED)
        for value in (1, 3, -2, 2.0, "2", True, None, [2], 10**4000)
    },
    **{f"task {value!r}": (_set(value, "task"), REFUSED) for value in (None, 1, ["listops"])},
    **{
        f"{field} {value!r}": (_set(value, field), REFUSED)
        for field in ("settings", "source", "splits", "skipped")
        for value in WRONG_MAPPINGS
    },
    "other settings": (_set({"source": "/etc"}, "settings"), REFUSED),
    "settings nested deeply": (
        _raw('"settings": {', '"settings": {"x": ' + '{"x":' * 400 + "1" + "}" * 400 + ","),
        REFUSED,
    ),
    **{f"splits, {str(name)[:20]!r} for train": (_renamed(name), REFUSED) for name in ESCAPES},
    **{f"splits, {str(name)[:20]!r} beside train": (_beside(name), REFUSED) for name in ESCAPES},
    **{f"train {value!r}": (_set(value, *TRAIN), REFUSED) for value in WRONG_MAPPINGS},
    **{f"tokens {value!r}": (_set(value, *TOKENS), REFUSED) for value in WRONG_MAPPINGS},
    **{
        f"train, a file {name!r}": (_set({"bytes": 1, "sha256": "0" * 64}, *TRAIN, name), REFUSED)
        for name in ("../../../etc/passwd", "/etc/passwd", "extra", "", "tokens.bin", "names.txt")
    },
    **{f"bytes {str(value)[:30]}": (_set(value, *TOKENS, "bytes"), REFUSED) for value in WRONG_SIZES},
    "bytes 299": (_set(299, *TOKENS, "bytes"), REFUSED),
    **{f"sha256 {value!r}": (_set(value, *TOKENS, "sha256"), REFUSED) for value in WRONG_DIGESTS},
    "sha256 of another file": (_set("0" * 64, *TOKENS, "sha256"), REFUSED),
    "names left out": (_without(*TRAIN, "names"), ACCEPTED),
    **{
        f"skipped, {value!r}": (_set(value, "skipped", "train"), REFUSED)
        for value in (None, 1, "text", [1], [[]], {"a": "b"})
    },
    "skipped, another split": (_set([], "skipped", "../x"), REFUSED),
    "skipped, half a character": (_set(["\ud800 \x1b[2J"], "skipped", "train"), ACCEPTED),
    **{
        f"source, {str(value)[:30]}": (_set(value, "source", "basic_val.tsv"), REFUSED)
        for value in (None, -1, True, 1.5, "9")
    },
    "source, another size": (_set(5, "source", "basic_val.tsv"), REFUSED),
    "source, another file": (_set(5, "source", "../../etc/passwd"), ACCEPTED),
    "not a number": (_raw('"format": 2', '"format": NaN'), REFUSED),
    "not a number in the settings": (_raw('"settings": {', '"settings": {"x": NaN,'), REFUSED),
    "infinity": (_raw('"bytes": ', '"bytes": Infinity, "x": '), REFUSED),
    "more digits than Python reads": (_raw('"bytes": ', f'"bytes": {"9" * 5_000}, "x": '), REFUSED),
    "format twice": (_raw('"format": 2', '"format": 2, "format": 2'), REFUSED),
    "bytes twice": (_raw('"bytes": ', '"bytes": 0, "bytes": '), REFUSED),
    "nested beyond what Python reads": (_raw('"settings": {', '"settings": {"x": ' + "[" * 100_000), REFUSED),
    "half a character": (_raw('"task": "', '"task": "\ud800'), REFUSED),
    "Latin-1": (lambda path: path.write_bytes(path.read_bytes().replace(b'"listops"', b'"\xe9"')), REFUSED),
    "a comment": (_raw("{", "{ // made by hand\n"), REFUSED),
    "a comma too many": (_raw('"format": 2,', '"format": 2,,'), REFUSED),
    "single quotes": (_raw('"format"', "'format'"), REFUSED),
    "after it another": (lambda path: path.write_text(path.read_text() * 2), REFUSED),
}
