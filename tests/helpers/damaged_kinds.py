"""Every kind of data file that is read, in small folders that hold one of each."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny_sources
from source_changes import LEVEL, packed, write_batches, write_pathfinder

from datamodules import Image, ListOps, Pathfinder, Retrieval, Text
from datamodules.prepared.format import file_name


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        task: that reads it.
        tree: which of `TREES` holds it.
        file: its name there, the first of those that match.
        named: what a message about it must name.
        source: what `data.source` names below `source`.
        agreeing: whether `meta.json` is made to agree with what was changed, as somebody with a bad folder would.
    """

    task: type
    tree: str
    file: str
    named: str
    source: str = ""
    agreeing: bool = False

    @property
    def is_prepared(self) -> bool:
        return self.tree in PREPARED


def _prepared(file: str, task: type = ListOps, tree: str = "prepared", agreeing: bool = True) -> Kind:
    return Kind(task, tree, f"data/*/train/{file}", file, agreeing=agreeing)


ARRAYS = ("tokens.bin", "offsets.bin", "labels.bin", "names.txt")
KINDS = {
    **{f"prepared {file}": _prepared(file, agreeing=False) for file in ARRAYS},
    **{f"prepared {file}, meta.json agreeing": _prepared(file) for file in ARRAYS},
    "offsets.bin of pairs, meta.json agreeing": _prepared("offsets.bin", Retrieval, "prepared pairs"),
    "offsets.bin of images, meta.json agreeing": _prepared("offsets.bin", Pathfinder, "prepared images"),
    "prepared meta.json": Kind(ListOps, "prepared", "data/*/meta.json", "meta.json"),
    "ListOps, TSV": Kind(ListOps, "listops", "source/basic_train.tsv", "basic_train.tsv"),
    "Retrieval, TSV": Kind(Retrieval, "retrieval", "source/new_aan_pairs.train.tsv", "new_aan_pairs.train.tsv"),
    "CIFAR-10, batch": Kind(Image, "batches", "source/*/data_batch_1", "cifar-10-batches-py"),
    "CIFAR-10, class names": Kind(Image, "batches", "source/*/batches.meta", "cifar-10-batches-py"),
    "CIFAR-10, PNG": Kind(Image, "image", "source/train/cat/0002.png", "cat/0002.png"),
    "IMDb, review": Kind(Text, "text", "source/train/neg/3_2.txt", "train/neg/3_2.txt"),
    "IMDb, tar": Kind(Text, "tar", "source/a.tar", "a.tar", "a.tar"),
    "IMDb, tar.gz": Kind(Text, "tar.gz", "source/a.tar.gz", "a.tar.gz", "a.tar.gz"),
    "IMDb, tar.xz": Kind(Text, "tar.xz", "source/a.tar.xz", "a.tar.xz", "a.tar.xz"),
    "Pathfinder, PNG": Kind(Pathfinder, "pathfinder", f"source/{LEVEL}/imgs/1/sample_2.png", "imgs/1/sample_2.png"),
    "Pathfinder, metadata as text": Kind(Pathfinder, "pathfinder", f"source/{LEVEL}/metadata/1.npy", "metadata/1.npy"),
    "Pathfinder, metadata as array": Kind(Pathfinder, "arrays", f"source/{LEVEL}/metadata/1.npy", "metadata/1.npy"),
}
SETTINGS: dict[type, dict[str, Any]] = {Image: {"val_size": 10}, Text: {"val_size": 10}}
# The trees that are made by preparing another one.
PREPARED = {
    "prepared": (ListOps, "listops"),
    "prepared pairs": (Retrieval, "retrieval"),
    "prepared images": (Pathfinder, "pathfinder"),
}


def build(task: type, place: Path, source: str = "") -> Any:
    """The task on `source` and `data` in this folder."""
    return task(data_dir=str(place / "data"), source=str(place / "source" / source), **SETTINGS.get(task, {}))


def write_tree(tree: str, place: Path, patch: pytest.MonkeyPatch) -> None:
    """Write `source`, and for a prepared one `data`; `patch` makes the checksums of CIFAR-10 those of its tiny one."""
    task, name = PREPARED.get(tree, (None, tree))
    if name == "batches":
        write_batches(place / "source", patch)
    else:
        _WRITERS[name](place / "source")
    (place / "data").mkdir()
    if task:
        build(task, place).prepare_data()


def _write_listops(folder: Path) -> None:
    """40 expressions a split, of 3 to 12 tokens."""
    folder.mkdir(parents=True)
    rows = (f"( [MAX {' '.join('0123456789'[: row % 10 + 1])} ] )\t{row % 10}\n" for row in range(40))
    text = "Source\tTarget\n" + "".join(rows)
    for split in ("train", "val", "test"):
        (folder / f"basic_{split}.tsv").write_text(text)


def _write_arrays(folder: Path) -> None:
    """Pathfinder with metadata that are arrays of strings."""
    write_pathfinder(folder)
    for path in folder.glob(f"{LEVEL}/metadata/*"):
        np.save(path, np.array([row.split() for row in path.read_text().splitlines()]))


def _archive_writer(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        tiny_sources.write_text(folder / "raw")
        packed(folder / "raw", name)
        shutil.rmtree(folder / "raw")

    return write


_WRITERS: dict[str, Callable[[Path], None]] = {
    "listops": _write_listops,
    "retrieval": tiny_sources.write_retrieval,
    "image": tiny_sources.write_image,
    "text": tiny_sources.write_text,
    "pathfinder": write_pathfinder,
    "arrays": _write_arrays,
    **{ending: _archive_writer(f"a.{ending}") for ending in ("tar", "tar.gz", "tar.xz")},
}


def agree(folder: Path) -> None:
    """Write into a prepared folder's `meta.json` what its files are now."""
    meta = json.loads((folder / "meta.json").read_text())
    for split, files in meta["splits"].items():
        for name in files:
            path = folder / split / file_name(name)
            if path.is_file():
                files[name] = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (folder / "meta.json").write_text(json.dumps(meta))
