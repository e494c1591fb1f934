"""Downloads from a server of this process that cuts off, ignores ranges or has nothing: resumed, checked, kept."""

import hashlib
import multiprocessing
import pickle
import shutil
import socket
import tarfile
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle, islice, repeat
from pathlib import Path

import numpy as np
import pytest
import tiny_sources
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10

import datamodules
from datamodules.download import fetch
from datamodules.prepared import PreparedDataError

CONTENT = np.random.default_rng(0).bytes(3000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Gives `content` whatever the path.

    Attributes:
        cuts: for each request, after how many bytes it is cut off; whole ones follow.
        ranges: whether a Range is heeded.
        status: of an error that is the answer to all requests.
        asked: the Range of each request.
        sent: bytes of each answer.
        waits: half of the first answer waits for a second request, or for half a second if none comes.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.cuts: Iterator[int] = iter(())
        self.ranges = True
        self.status: int | None = None
        self.asked: list[str | None] = []
        self.sent: list[int] = []
        self.waits = False
        self.second = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        if len(server.asked) > 1:
            server.second.set()
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges else 0
        if server.status or (start and start >= len(server.content)):
            self.send_error(server.status or 416)
            return
        rest = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        part = rest[: next(server.cuts, len(rest))]
        server.sent.append(len(part))
        half = len(part) // 2
        self.wfile.write(part[:half])
        if server.waits:
            server.second.wait(timeout=0.5)
        self.wfile.write(part[half:])

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture(autouse=True)
def no_processes(monkeypatch):
    """Starting those that decode pictures, and pausing between attempts, would take most of the time."""
    monkeypatch.setattr("datamodules.download.PAUSE", 0)
    monkeypatch.setattr(
        "datamodules.examples.DataLoader", lambda *args, **settings: DataLoader(*args, **{**settings, "num_workers": 0})
    )


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "downloads/file.bin"


def get(server, path):
    return fetch(server.url, path, "sha256", DIGEST)


def assert_fetched(path):
    assert path.read_bytes() == CONTENT
    assert [found.name for found in visible(path.parent)] == [path.name]


def visible(folder):
    """What is there but for lock files."""
    return sorted(folder.glob("[!.]*"))


def nobody() -> str:
    """An address where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/file.bin"


def test_a_file_is_fetched_once(server, path):
    assert get(server, path) == path
    assert_fetched(path)
    assert get(server, path) == path
    assert server.asked == [None]


@pytest.mark.parametrize(("algorithm", "length"), [("md5", 32), ("sha256", 64)])
def test_checksum_by_either_algorithm(algorithm, length, server, path):
    digest = hashlib.new(algorithm, CONTENT).hexdigest()
    assert len(digest) == length
    fetch(server.url, path, algorithm, digest)
    assert_fetched(path)


def test_a_cut_off_download_goes_on_in_the_same_call(server, path):
    server.cuts = iter([1000, 500])
    get(server, path)
    assert_fetched(path)
    assert server.asked == [None, "bytes=1000-", "bytes=1500-"]
    assert server.sent == [1000, 500, 1500]


def test_the_next_call_asks_for_the_rest_alone(server, path):
    server.cuts = iter([1000, *repeat(0, 20)])
    with pytest.raises(PreparedDataError) as error:
        get(server, path)
    for named in (server.url, "1,000 bytes", str(path)):
        assert named in str(error.value)
    part = path.with_name("file.bin.part")
    assert part.read_bytes() == CONTENT[:1000]
    assert visible(path.parent) == [part]
    server.cuts, server.asked, server.sent = iter(()), [], []
    get(server, path)
    assert_fetched(path)
    assert (server.asked, server.sent) == (["bytes=1000-"], [2000])


def test_many_cuts_are_survived_as_long_as_something_arrives(server, path):
    server.cuts = repeat(250)
    get(server, path)
    assert_fetched(path)
    assert server.sent == [250] * 12


def test_a_server_that_ignores_ranges_begins_anew(server, path):
    server.ranges = False
    server.cuts = iter([1000])
    get(server, path)
    assert_fetched(path)
    assert server.asked == [None, "bytes=1000-"]
    assert server.sent == [1000, 3000]


def test_a_server_that_ignores_ranges_and_always_cuts_off_is_given_up(server, path):
    """What begins anew gets nowhere, wherever it is cut."""
    server.ranges = False
    server.cuts = islice(cycle([1000, 500]), 60)
    with pytest.raises(PreparedDataError, match="cannot fetch"):
        get(server, path)
    assert len(server.asked) <= 20


@pytest.mark.parametrize("ranges", [True, False])
def test_a_part_that_is_whole_is_accepted(ranges, server, path):
    server.ranges = ranges
    path.parent.mkdir()
    path.with_name("file.bin.part").write_bytes(CONTENT)
    get(server, path)
    assert_fetched(path)
    assert server.asked == ["bytes=3000-"]
    assert sum(server.sent) == (0 if ranges else 3000)


def wrong_on_the_server(server, path):
    server.content = CONTENT[:-1]


def wrong_under_its_own_name(server, path):
    path.parent.mkdir()
    path.write_bytes(CONTENT[:-1])


def part_of_another_file(server, path):
    path.parent.mkdir()
    path.with_name("file.bin.part").write_bytes(b"another")


def part_that_is_too_long(server, path):
    path.parent.mkdir()
    path.with_name("file.bin.part").write_bytes(CONTENT + b"\0")


@pytest.mark.parametrize(
    "spoil", [wrong_on_the_server, wrong_under_its_own_name, part_of_another_file, part_that_is_too_long]
)
def test_a_wrong_checksum_is_kept_aside_and_the_next_call_fetches_anew(spoil, server, path):
    spoil(server, path)
    with pytest.raises(PreparedDataError) as error:
        get(server, path)
    aside = path.with_name("file.bin.wrong")
    for named in ("file.bin", DIGEST, str(aside)):
        assert named in str(error.value)
    assert visible(path.parent) == [aside]
    server.content, server.asked = CONTENT, []
    get(server, path)
    assert path.read_bytes() == CONTENT
    assert visible(path.parent) == [path, aside]
    assert server.asked == [None]


def test_an_archive_put_there_by_hand_asks_nobody(path):
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    assert fetch(nobody(), path, "sha256", DIGEST) == path


def test_without_a_server(path):
    url = nobody()
    with pytest.raises(PreparedDataError, match=f"cannot fetch {url}: .*refused"):
        fetch(url, path, "sha256", DIGEST)
    assert not path.exists()


@pytest.mark.parametrize("status", [403, 404, 500])
def test_an_error_of_the_server_is_said(status, server, path):
    server.status = status
    with pytest.raises(PreparedDataError, match=f"cannot fetch {server.url}: .*{HTTPStatus(status).phrase}"):
        get(server, path)
    assert visible(path.parent) == []


def test_an_error_of_the_server_keeps_what_had_arrived(server, path):
    path.parent.mkdir()
    path.with_name("file.bin.part").write_bytes(CONTENT[:1000])
    server.status = 503
    with pytest.raises(PreparedDataError, match="Service Unavailable"):
        get(server, path)
    server.status, server.sent = None, []
    get(server, path)
    assert_fetched(path)
    assert server.sent == [2000]


def test_range_not_satisfiable_without_a_part_is_an_error(server, path):
    server.status = 416
    with pytest.raises(PreparedDataError):
        get(server, path)
    assert not path.exists()


def test_two_processes_fetch_one_file(server, path):
    """Two settings of one task are two folders with a lock each, but one download."""
    server.waits = True
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=get, args=(server, path)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert_fetched(path)
    assert server.asked == [None], "the other waited"


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
    data = task(data_dir=str(data_dir), dev_size=10, **settings)
    data.prepare_data()
    data.setup("fit")
    return data


def counts(data):
    return {split: len(arrays) for split, arrays in data.splits.items()}


def test_text_is_fetched_and_prepared(reviews, tmp_path):
    reviews.cuts = iter([100])
    data = prepared(datamodules.Text, tmp_path / "data")
    assert counts(data) == {"train": 20, "dev": 10, "test": 10}
    assert data.example_names("test")[0] == "test/neg/0_2.txt"
    prepared(datamodules.Text, tmp_path / "data", max_bytes=10)
    assert reviews.asked == [None, "bytes=100-"], "other settings use the same download"


def test_image_is_fetched_and_prepared(pictures, tmp_path):
    pictures.cuts = iter([100])
    data = prepared(datamodules.Image, tmp_path / "data")
    assert counts(data) == {"train": 10, "dev": 10, "test": 10}
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
