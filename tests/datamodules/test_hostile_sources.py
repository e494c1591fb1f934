"""Sources that would run code, that no path names, that fail in the middle."""

import errno
import multiprocessing
import os
import pickle
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_sources
from PIL import Image as PillowImage
from source_changes import (
    METADATA,
    SETTINGS,
    assert_nothing_prepared,
    cut,
    emptied,
    gone,
    nothing_but,
    prepared,
    save_picture,
    write_batches,
    write_pathfinder,
)

from datamodules import Image, ListOps, Pathfinder, Retrieval, Text
from datamodules.examples import Skipped
from datamodules.files import PreparedDataError
from datamodules.sources.pictures import read_picture

pytestmark = pytest.mark.usefixtures("no_processes")


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def save_object_array(path: Path, hostile: Hostile) -> None:
    np.save(path, np.array([[hostile] * 5], dtype=object), allow_pickle=True)


def save_pickle(path: Path, hostile: Hostile) -> None:
    path.write_bytes(pickle.dumps([hostile] * 5))


@pytest.mark.parametrize("save", [save_object_array, save_pickle])
def test_metadata_runs_no_code(save, source, prepared_dir, tmp_path):
    write_pathfinder(source)
    save(source / METADATA, Hostile(tmp_path / "made"))
    with pytest.raises(PreparedDataError, match=r"metadata/1.npy"):
        prepared(Pathfinder, source, prepared_dir)
    assert not (tmp_path / "made").exists()
    assert_nothing_prepared(prepared_dir)


BATCHES = "cifar-10-batches-py"


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(gone(f"{BATCHES}/data_batch_2"), id="no batch"),
        pytest.param(gone(f"{BATCHES}/test_batch"), id="no test batch"),
        pytest.param(gone(f"{BATCHES}/batches.meta"), id="no class names"),
        pytest.param(cut(f"{BATCHES}/data_batch_1"), id="cut"),
        pytest.param(emptied(f"{BATCHES}/*"), id="empty"),
        pytest.param(cut(f"{BATCHES}/batches.meta"), id="class names cut"),
        pytest.param(nothing_but(BATCHES), id="empty folder"),
        pytest.param(gone(BATCHES), id="no folder"),
    ],
)
def test_damaged_batches_are_said(damage, source, prepared_dir, monkeypatch):
    write_batches(source, monkeypatch)
    damage(source)
    with pytest.raises(PreparedDataError, match=BATCHES):
        prepared(Image, source, prepared_dir)
    assert_nothing_prepared(prepared_dir)
    shutil.rmtree(source)
    write_batches(source, monkeypatch)
    monkeypatch.setitem(SETTINGS, Image, {"val_size": 10})
    prepared(Image, source, prepared_dir)


def test_batches_run_no_code(source, prepared_dir, tmp_path, monkeypatch):
    write_batches(source, monkeypatch)
    save_pickle(source / BATCHES / "data_batch_1", Hostile(tmp_path / "made"))
    with pytest.raises(PreparedDataError, match=BATCHES):
        prepared(Image, source, prepared_dir)
    assert not (tmp_path / "made").exists()


@pytest.fixture
def started(monkeypatch):
    """The processes that this test has started, as preparing does, and that have not ended."""
    monkeypatch.undo()
    before = multiprocessing.active_children()
    return lambda: [process for process in multiprocessing.active_children() if process not in before]


def test_a_bad_picture_ends_the_processes_that_read(source, prepared_dir, started):
    """Left to the garbage collector they would hold it up for seconds, and complain on stderr."""
    tiny_sources.write_image(source)
    save_picture(source / "train/cat/0002.png", 33, 32)
    with pytest.raises(PreparedDataError, match=r"train/cat/0002.png: .*33×32"):
        prepared(Image, source, prepared_dir)
    assert started() == []


def test_a_full_disk_ends_the_processes_that_read(source, prepared_dir, started, monkeypatch):
    tiny_sources.write_image(source)

    def fail(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("datamodules.prepared.writing._Files.append", fail)
    with pytest.raises(PreparedDataError, match="No space left"):
        prepared(Image, source, prepared_dir)
    assert started() == []
    assert_nothing_prepared(prepared_dir)


def test_a_disk_that_fails_is_no_broken_picture(tmp_path, monkeypatch):
    """Else a moment's trouble would leave pictures out for good."""

    def fail(path: Path, limit: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("datamodules.sources.pictures.read_bounded", fail)
    with pytest.raises(PreparedDataError, match=r"x.png.*Input/output error"):
        read_picture(tmp_path / "x.png", 32, "L")


def test_a_picture_of_sixteen_bits_is_not_read_as_white(tmp_path):
    PillowImage.fromarray(np.full((32, 32), 40_000, dtype=np.uint16)).save(tmp_path / "x.png")
    with suppress(PreparedDataError):
        pixels = read_picture(tmp_path / "x.png", 32, "L")
        assert isinstance(pixels, Skipped) or pixels[0, 0] in (155, 156)


@pytest.mark.parametrize("task", [Text, Image, Retrieval, ListOps, Pathfinder])
@pytest.mark.parametrize("name", ["~nobody-of-this-name/lra", "x" * 300, "file/below", "file"])
def test_a_source_that_cannot_be_a_folder(name, task, tmp_path, prepared_dir):
    (tmp_path / "file").write_bytes(b"Source\tTarget\n")
    source = name if name.startswith("~") else tmp_path / name
    with pytest.raises(PreparedDataError, match=re.escape(str(source))):
        prepared(task, source, prepared_dir)
    assert_nothing_prepared(prepared_dir)


def test_no_release_says_where_it_can_be_had(prepared_dir):
    with pytest.raises(
        PreparedDataError, match=r"lra_release.*data.source.*https://storage.googleapis.com/.*lra_release"
    ):
        prepared(Retrieval, None, prepared_dir)
    assert_nothing_prepared(prepared_dir)
