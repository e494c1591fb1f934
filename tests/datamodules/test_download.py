"""Downloads from a server of this process that cuts off, ignores ranges or has nothing: resumed, checked, kept."""

import hashlib
import multiprocessing
import socket
from http import HTTPStatus
from itertools import cycle, islice, repeat

import pytest
from download_server import CONTENT, DIGEST, visible

from datamodules.files import PreparedDataError
from datamodules.sources.download import fetch

pytestmark = pytest.mark.usefixtures("no_pauses")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "downloads/file.bin"


def get(server, path):
    return fetch(server.url, path, "sha256", DIGEST)


def assert_fetched(path):
    assert path.read_bytes() == CONTENT
    assert [found.name for found in visible(path.parent)] == [path.name]


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
