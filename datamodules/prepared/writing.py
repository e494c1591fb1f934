"""Write a prepared folder atomically, once for all processes."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.examples import Chunk
from datamodules.files import BETTER_PLACES, REMAKE, PreparedDataError, printable, waiting_lock
from datamodules.prepared.format import FORMAT_VERSION, file_name, folder_name, read_meta

SHOWN = 5  # names of what was skipped
FEW = 5  # examples that any split may lack; else one in a hundred
RawSplits = Mapping[str, Iterable[Chunk]]


def prepare(
    root: Path,
    task: str,
    settings: Mapping[str, Any],
    raw_splits: Callable[[], RawSplits],
    expected_bytes: Callable[[], int],
    dtypes: Mapping[str, str],
    source: Mapping[str, int] | None = None,
) -> Path:
    """Write the folder for `settings` unless it is there; `raw_splits` is only called if it is not.

    It is written under a temporary name and then renamed, so a folder under its own name is always complete. One
    process prepares at a time. Others wait and then find the folder.

    Args:
        root: folder of all prepared data; made if missing.
        task: first part of the folder's name.
        settings: everything that the arrays depend on; plain JSON values.
        raw_splits: gives the chunks of each split, lazily.
        expected_bytes: gives a guess of the size, compared with the free space before a long computation starts.
        dtypes: dtypes of the arrays (`Layout.dtypes`).
        source: sizes of the files that the arrays are made from, by name; empty without such files (any more).

    Raises:
        PreparedDataError: if there is no space or no permission, if a split is empty, or if an existing folder was made
            from files of other sizes. No partial folder is left.
    """
    folder = root / folder_name(task, settings)
    try:
        if not (folder / "meta.json").exists():
            root.mkdir(parents=True, exist_ok=True)
            with waiting_lock(root / f".{folder.name}.lock"):
                if not (folder / "meta.json").exists():
                    _check_room(folder, expected_bytes())
                    meta = {"format": FORMAT_VERSION, "task": task, "settings": settings, "source": source or {}}
                    _write_and_rename(folder, meta, raw_splits(), dtypes)
    except OSError as error:
        raise _not_prepared(folder, error, expected_bytes) from error
    _check_source(folder, source or {})
    return folder


def _not_prepared(folder: Path, error: OSError, expected_bytes: Callable[[], int]) -> PreparedDataError:
    """Return the error that names the failed path, the reason and the fix."""
    fix = f"set data.data_dir to {BETTER_PLACES.get(error.errno or 0)}"
    if error.errno not in BETTER_PLACES:  # of all else that a disk can have, too little room is the likeliest
        room = f"{expected_bytes() / 1e6:,.0f} MB"
        fix = f"free some space or set data.data_dir to a folder with room for about {room}"
    reason = error.strerror or error
    where = f"{error.filename}: " if error.filename else ""
    return PreparedDataError(f"cannot prepare {folder}: {where}{reason}. Nothing was kept; {fix}.")


def _say_skipped(skipped: Mapping[str, list[str]]) -> None:
    for split, reasons in skipped.items():
        if reasons:
            shown = "\n  ".join(map(printable, reasons[:SHOWN]))
            print(f"{split}: {len(reasons):,} skipped, all named in meta.json. The first:\n  {shown}", flush=True)


def _check_source(folder: Path, source: Mapping[str, int]) -> None:
    made_from = read_meta(folder)["source"]
    for name, size in source.items():
        if made_from.get(name) != size:
            before = f"of size {made_from[name]:,}" if name in made_from else "that was not there"
            raise PreparedDataError(
                f"{folder} was made from {name} {before} (see meta.json); now its size is {size:,}. {REMAKE}"
            )


def _check_room(folder: Path, expected_bytes: int) -> None:
    if os.path.lexists(folder):
        raise PreparedDataError(f"{folder} has no meta.json. {REMAKE}")
    free = shutil.disk_usage(folder.parent).free
    if free < expected_bytes:
        message = f"{free / 1e6:,.0f} MB are free and about {expected_bytes / 1e6:,.0f} MB are needed"
        raise OSError(errno.ENOSPC, message)


def _write_and_rename(folder: Path, meta: dict[str, Any], splits: RawSplits, dtypes: Mapping[str, str]) -> None:
    partial = folder.with_name(folder.name + ".partial")
    _remove(partial)  # left by a process that was killed
    try:
        partial.mkdir()
        meta |= {"splits": {}, "skipped": {}}
        for split, chunks in splits.items():
            (partial / split).mkdir()
            meta["splits"][split], meta["skipped"][split] = _write_split(
                partial / split, chunks, dtypes, meta["settings"].get("source")
            )
        (partial / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
        partial.rename(folder)
        _say_skipped(meta["skipped"])
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _remove(path: Path) -> None:
    """A folder with all that is in it, or what else has its name; of a link only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)  # rmtree would open a pipe, and wait


def _write_split(
    folder: Path, chunks: Iterable[Chunk], dtypes: Mapping[str, str], source: str | None
) -> tuple[dict[str, Any], list[str]]:
    """Write the files of a split; returns what `meta.json` says of them, and what was skipped."""
    files = _Files(folder)
    lengths = [np.zeros(1, dtype=np.int64)]
    skipped: list[str] = []
    for chunk in chunks:
        files.append("tokens", _as_bytes("tokens", chunk.tokens, dtypes))
        files.append("labels", _as_bytes("labels", chunk.labels, dtypes))
        if chunk.names:
            files.append("names", "".join(f"{name}\n" for name in chunk.names).encode())
        lengths.append(chunk.lengths)
        skipped += chunk.skipped
    offsets = np.cumsum(np.concatenate(lengths), dtype=dtypes["offsets"])
    examples = len(offsets) - 1
    if examples == 0 or len(skipped) > max(FEW, (examples + len(skipped)) // 100):
        first = f"; the first: {printable(skipped[0])}" if skipped else ""
        count = f"{examples:,} examples" if examples else "no example"
        raise PreparedDataError(
            f"split {folder.name!r} has {count}; {len(skipped):,} skipped{first}. The source seems incomplete"
            f"{f' (got {source})' if source else ''}. Fix: set data.source to a complete copy."
        )
    files.append("offsets", offsets.tobytes())
    return files.description, skipped


def _as_bytes(name: str, values: np.ndarray, dtypes: Mapping[str, str]) -> bytes:
    """Return the array in its dtype; refuse numbers that this dtype cannot hold, which would become others."""
    stored = np.ascontiguousarray(values, dtype=dtypes[name])
    if (changed := stored != values).any():
        number = values[changed][0]
        fix = "Fix: raise the task's vocab_size or num_classes"
        raise PreparedDataError(f"{name} hold {number}, which {dtypes[name]} cannot. {fix}")
    return stored.tobytes()


class _Files:
    """The files of a split, appended to with plain writes, since a full disk kills a memory map."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sizes: dict[str, int] = {}
        self.digests: dict[str, Any] = {}

    def append(self, name: str, data: bytes) -> None:
        with open(self.folder / file_name(name), "ab") as file:
            file.write(data)
        self.sizes[name] = self.sizes.get(name, 0) + len(data)
        self.digests.setdefault(name, hashlib.sha256()).update(data)

    @property
    def description(self) -> dict[str, Any]:
        return {name: {"bytes": size, "sha256": self.digests[name].hexdigest()} for name, size in self.sizes.items()}
