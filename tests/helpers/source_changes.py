"""Sources of every task, ways to spoil one, and what is left of it."""

import hashlib
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_sources
from PIL import Image as PillowImage
from torchvision.datasets import CIFAR10

from datamodules import Image, ListOps, Pathfinder, Retrieval, Text
from datamodules.prepared.format import read_meta

ROW = "( ( ( [MAX 4 ) 2 ) ] )\t4"
LEVEL = "pathfinder32/curv_contour_length_14"
METADATA = f"{LEVEL}/metadata/1.npy"
Change = Callable[[Path], None]


def write_listops(folder: Path) -> None:
    """5 expressions a split, with the release's line ends."""
    folder.mkdir(parents=True)
    for split in ("train", "val", "test"):
        lines = ["Source\tTarget", *[ROW] * 5]
        (folder / f"basic_{split}.tsv").write_bytes("".join(f"{line}\r\n" for line in lines).encode())


def write_pathfinder(folder: Path) -> None:
    """Two metadata files of 10 pictures each: 16, 2 and 2."""
    for number in range(2):
        rows = []
        for sample in range(10):
            name = f"imgs/{number} sample_{sample}.png"
            save_picture(folder / LEVEL / name.replace(" ", "/"), 32, 32)
            rows.append(f"{name} {sample} {sample % 2} 1.8 6 2.0 5\n")
        path = folder / LEVEL / f"metadata/{number}.npy"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(rows))


def save_picture(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PillowImage.new("L", (width, height), 7).save(path)


WRITERS: dict[type, Callable[[Path], None]] = {
    Image: tiny_sources.write_image,
    ListOps: write_listops,
    Pathfinder: write_pathfinder,
    Retrieval: tiny_sources.write_retrieval,
    Text: tiny_sources.write_text,
}
SETTINGS: dict[type, dict[str, Any]] = {Image: {"val_size": 20}, ListOps: {"min_length": 4}, Text: {"val_size": 10}}


def prepared(task: type, source: Path | str | None, data_dir: Path) -> Any:
    settings = SETTINGS.get(task, {})
    data = task(data_dir=str(data_dir), source=None if source is None else str(source), **settings)
    data.prepare_data()
    data.setup("fit")
    return data


def names(data: Any) -> set[tuple[str, str]]:
    return {(split, name) for split in data.splits for name in data.example_names(split)}


def assert_nothing_prepared(data_dir: Path) -> None:
    left = [path.name for path in data_dir.glob("*") if not path.name.startswith(".") and path.name != "downloads"]
    assert left == []


def skipped(data: Any) -> list[tuple[str, str]]:
    """Split and reason of each."""
    return [(split, reason) for split, reasons in read_meta(data.folder)["skipped"].items() for reason in reasons]


def gone(name: str) -> Change:
    """A file or a folder, or all of the source where the name is empty."""

    def change(source: Path) -> None:
        if (source / name).is_dir():
            shutil.rmtree(source / name)
        else:
            (source / name).unlink()

    return change


def emptied(pattern: str) -> Change:
    def change(source: Path) -> None:
        for path in source.glob(pattern):
            path.write_bytes(b"")

    return change


def cut(name: str) -> Change:
    def change(source: Path) -> None:
        content = (source / name).read_bytes()
        (source / name).write_bytes(content[: len(content) // 2])

    return change


def cut_at_the_last(name: str, byte: bytes) -> Change:
    def change(source: Path) -> None:
        content = (source / name).read_bytes()
        (source / name).write_bytes(content[: content.rindex(byte)])

    return change


def holding(name: str, content: bytes) -> Change:
    def change(source: Path) -> None:
        (source / name).write_bytes(content)

    return change


def row(name: str, number: int, content: str) -> Change:
    """Another content of a line, counted from 1."""

    def change(source: Path) -> None:
        lines = (source / name).read_bytes().splitlines(keepends=True)
        lines[number - 1] = content.encode() + b"\n"
        (source / name).write_bytes(b"".join(lines))

    return change


def array(content: Any) -> Change:
    def change(source: Path) -> None:
        np.save(source / METADATA, content)

    return change


def picture(name: str, width: int, height: int) -> Change:
    return lambda source: save_picture(source / name, width, height)


def both(first: Change, second: Change) -> Change:
    def change(source: Path) -> None:
        first(source)
        second(source)

    return change


def nothing_but(name: str) -> Change:
    """An empty folder in place of one."""

    def change(source: Path) -> None:
        shutil.rmtree(source / name)
        (source / name).mkdir()

    return change


def train_row(content: str) -> Change:
    return row("basic_train.tsv", 3, content)


def pair(content: str) -> Change:
    return row("new_aan_pairs.train.tsv", 3, content)


def listed(content: str) -> Change:
    return row(METADATA, 3, content)


MARKER = "train/pos/99_9.txt"  # is followed by another one of its class


def packed(source: Path, name: str, **settings: Any) -> Path:
    """An archive of the source, of the kind that its name says, beside it."""
    path = source.with_name(name)
    with tarfile.open(path, f"w:{path.suffix.removeprefix('.').removesuffix('tar')}", **settings) as archive:
        archive.add(source, "aclImdb")
    return path


def write_archive(source: Path, name: str, **settings: Any) -> Path:
    tiny_sources.write_text(source)
    (source / MARKER).write_bytes(b"marker")
    return packed(source, name, format=tarfile.USTAR_FORMAT, **settings)


def write_batches(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torchvision's `cifar-10-batches-py`: 20 pictures to train on and 10 to test; its checksums become theirs."""
    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 10, 3072), dtype=np.uint8)
    contents = {
        name: {"data": data, "labels": list(range(10))}
        for name, data in zip(("data_batch_1", "data_batch_2", "test_batch"), pictures, strict=True)
    }
    contents["batches.meta"] = {"label_names": list(tiny_sources.CLASSES)}
    sums = []
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        sums.append([name, hashlib.md5((folder / name).read_bytes()).hexdigest()])
    monkeypatch.setattr(CIFAR10, "train_list", sums[:2])
    monkeypatch.setattr(CIFAR10, "test_list", sums[2:3])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums[3][1]})
    return folder
