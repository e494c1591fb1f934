"""Text and Image from the download to the prepared folder."""

import hashlib
import shutil
import tarfile
from itertools import repeat
from pathlib import Path

import pytest
import tiny_sources
from download_server import visible
from source_changes import write_batches
from torchvision.datasets import CIFAR10

import datamodules
from datamodules.files import PreparedDataError

pytestmark = pytest.mark.usefixtures("no_processes", "no_pauses")


def archive_of(folder: Path, name: str) -> bytes:
    """A tar.gz whose only member is the folder, which is removed."""
    path = folder.with_name("archive.tar.gz")
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, name)
    shutil.rmtree(folder)
    return path.read_bytes()


@pytest.fixture
def reviews(server, tmp_path, monkeypatch):
    tiny_sources.write_text(tmp_path / "raw")
    server.content = archive_of(tmp_path / "raw", "aclImdb")
    monkeypatch.setattr("datamodules.text.URL", server.url.replace("file.bin", "aclImdb_v1.tar.gz"))
    monkeypatch.setattr("datamodules.text.SHA256", hashlib.sha256(server.content).hexdigest())
    return server


@pytest.fixture
def pictures(server, tmp_path, monkeypatch):
    server.content = archive_of(write_batches(tmp_path / "raw", monkeypatch), CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "url", server.url.replace("file.bin", CIFAR10.filename))
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(server.content).hexdigest())
    return server


def prepared(task, data_dir, **settings):
    data = task(data_dir=str(data_dir), val_size=10, **settings)
    data.prepare_data()
    data.setup("fit")
    return data


def counts(data):
    return {split: len(arrays) for split, arrays in data.splits.items()}


def test_text_is_fetched_and_prepared(reviews, tmp_path):
    reviews.cuts = iter([100])
    data = prepared(datamodules.Text, tmp_path / "data")
    assert counts(data) == {"train": 20, "val": 10, "test": 10}
    assert data.example_names("test")[0] == "test/neg/0_2.txt"
    prepared(datamodules.Text, tmp_path / "data", max_bytes=10)
    assert reviews.asked == [None, "bytes=100-"], "other settings use the same download"


def test_image_is_fetched_and_prepared(pictures, tmp_path):
    pictures.cuts = iter([100])
    data = prepared(datamodules.Image, tmp_path / "data")
    assert counts(data) == {"train": 10, "val": 10, "test": 10}
    assert data.splits["test"].split.labels.tolist() == list(range(10))
    prepared(datamodules.Image, tmp_path / "data", grey="pil")
    assert pictures.asked == [None, "bytes=100-"], "other settings use the same download"


@pytest.mark.parametrize(
    ("fixture", "task"), [("reviews", datamodules.Text), ("pictures", datamodules.Image)], ids=["text", "image"]
)
def test_a_failed_download_leaves_no_prepared_folder(fixture, task, request, tmp_path):
    server = request.getfixturevalue(fixture)
    server.cuts = iter([100, *repeat(0, 20)])
    with pytest.raises(PreparedDataError, match="cannot fetch"):
        prepared(task, tmp_path / "data")
    assert visible(tmp_path / "data") == [tmp_path / "data/downloads"]
    server.cuts = iter(())
    assert len(prepared(task, tmp_path / "data").splits["test"]) == 10


def test_what_is_prepared_needs_no_download(reviews, tmp_path):
    prepared(datamodules.Text, tmp_path / "data")
    shutil.rmtree(tmp_path / "data/downloads")
    reviews.status = 404
    prepared(datamodules.Text, tmp_path / "data")


def damage_batch(data_dir):
    batch = data_dir / "downloads" / CIFAR10.base_folder / "data_batch_2"
    batch.write_bytes(batch.read_bytes()[:-1])


def test_a_damaged_batch_is_unpacked_anew(pictures, tmp_path):
    prepared(datamodules.Image, tmp_path / "data")
    damage_batch(tmp_path / "data")
    assert counts(prepared(datamodules.Image, tmp_path / "data", grey="pil"))["train"] == 10
    assert pictures.asked == [None]


def test_a_damaged_batch_without_its_archive_is_fetched_anew(pictures, tmp_path):
    prepared(datamodules.Image, tmp_path / "data")
    damage_batch(tmp_path / "data")
    (tmp_path / "data/downloads" / CIFAR10.filename).unlink()
    pictures.status = 404
    with pytest.raises(PreparedDataError) as error:
        prepared(datamodules.Image, tmp_path / "data", grey="pil")
    assert CIFAR10.url in str(error.value)
    assert "free some space" not in str(error.value)
    pictures.status = None
    assert counts(prepared(datamodules.Image, tmp_path / "data", grey="pil"))["train"] == 10
