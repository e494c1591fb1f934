"""`extract`: Retrieval's files out of the release, from a file, a pipe or a server, whatever happens on the way."""

import gzip
import hashlib
import io
import tarfile
from itertools import repeat
from types import SimpleNamespace

import numpy as np
import pytest
from disks import mounted

from datamodules import Retrieval
from datamodules.files import PreparedDataError
from datamodules.retrieval import FILES
from datamodules.sources.release import SUMS, extract

NAMES = list(FILES.values())
ROOT = "lra_release/lra_release"
# Bytes that do not compress, so that a cut of the archive is a cut of a known file.
CONTENT = {name: np.random.default_rng(number).bytes(30_000) for number, name in enumerate(NAMES)}


def archive(**others: bytes) -> bytes:
    """A release with an image before the pairs and between them, and what macOS adds."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in others.items():
            add(tar, name, content)
        for name, content in CONTENT.items():
            add(tar, "pathfinder32/0.png", b"image")
            add(tar, f"tsv_data/._{name}", b"hidden")
            add(tar, f"tsv_data/{name}", content)
        add(tar, f"other/{NAMES[0]}", b"a second of this name")
        add(tar, "last", np.random.default_rng(9).bytes(50_000))
    return buffer.getvalue()


def add(tar, name, content):
    member = tarfile.TarInfo(f"{ROOT}/{name}")
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


WHOLE = archive()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "out/tsv_data"


@pytest.fixture
def packed(tmp_path):
    path = tmp_path / "lra_release.gz"
    path.write_bytes(WHOLE)
    return path


def assert_extracted(folder):
    assert {path.name: path.read_bytes() for path in folder.glob("*.tsv*")} == CONTENT
    sums = dict(reversed(line.split("  ")) for line in (folder / SUMS).read_text().splitlines())
    assert sums == {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}


def refused(source, folder, *words):
    with pytest.raises(PreparedDataError) as error:
        extract(str(source), NAMES, folder)
    for word in words:
        assert word in str(error.value)
    assert not list(folder.glob("*.partial"))


def test_pairs_alone_are_extracted_and_found_by_retrieval(packed, tmp_path, main, capsys):
    output = tmp_path / "data/lra_release"
    main(["extract", f"--source={packed}", f"--output={output}"])
    assert_extracted(output / "tsv_data")
    said = capsys.readouterr().out
    assert all(f"{name}: 0 MB, sha256 {hashlib.sha256(CONTENT[name]).hexdigest()}" in said for name in NAMES)
    assert Retrieval(data_dir=str(tmp_path / "data")).release == output / "tsv_data"


def test_reading_ends_with_the_last_pair(packed, folder):
    packed.write_bytes(WHOLE[:-40_000])
    extract(str(packed), NAMES, folder)
    assert_extracted(folder)


def test_standard_input(folder, monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(WHOLE)))
    extract("-", NAMES, folder)
    assert_extracted(folder)


@pytest.mark.usefixtures("no_pauses")
def test_server_that_cuts_off(server, folder):
    """Each connection continues at the first byte that is missing."""
    server.content, server.cuts = WHOLE, iter([20_000, 0, 10_000])
    extract(server.url, NAMES, folder)
    assert_extracted(folder)
    assert server.asked == [None, "bytes=20000-", "bytes=20000-", "bytes=30000-"]


@pytest.mark.usefixtures("no_pauses")
def test_server_that_gives_up(server, folder):
    server.content, server.cuts = WHOLE, iter([60_000, *repeat(0, 20)])
    refused(server.url, folder, f"cannot read {server.url}", "after 60,000 bytes", "Fix: run again")
    server.cuts, server.ranges = iter([30_000]), False
    refused(server.url, folder, "cut off after 30,000 bytes", "cannot send the rest")
    server.status = 404
    refused(server.url, folder, "Not Found")


def test_interrupted_extraction_keeps_finished_files(packed, folder):
    packed.write_bytes(WHOLE[:60_000])  # in the middle of the second file
    refused(packed, folder, "truncated: it ends after 60,000 bytes", "Finished files are kept")
    (kept,) = folder.glob("*.tsv")
    inode = kept.stat().st_ino
    packed.write_bytes(WHOLE)
    extract(str(packed), NAMES, folder)
    assert_extracted(folder)
    assert kept.stat().st_ino == inode
    packed.unlink()
    extract(str(packed), NAMES, folder)
    kept.write_bytes(b"other")
    refused(packed, folder, f"{kept} has changed", "Fix: remove the file and run again")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no gzipped tar archive"),
        (b"PK\3\4 a zip file", "Not a gzipped file"),
        (gzip.compress(b"text" * 1000), "no gzipped tar archive"),
        (WHOLE[:40_000] + WHOLE[40_100:], "damaged"),
    ],
    ids=["empty", "zip", "no tar", "damaged"],
)
def test_archive_that_is_none(content, words, packed, folder):
    packed.write_bytes(content)
    refused(packed, folder, str(packed), words)


def test_archive_without_the_pairs(packed, folder):
    with tarfile.open(packed, "w:gz") as tar:
        add(tar, f"tsv_data/{NAMES[1]}", b"1.0\ta\tb\tc\td\n")
    refused(packed, folder, f"has no {NAMES[0]}, {NAMES[2]}", "the Long Range Arena release")
    refused(packed.parent, folder, "it is a folder")
    refused(packed.parent / "gone", folder, "No such file or directory")


def test_disk_that_fills(packed, tmp_path):
    with mounted(tmp_path / "disk", 128) as disk:
        (disk / "ballast").write_bytes(bytes(70_000))
        refused(packed, disk / "out", "No space left on device", "free some space", "--output")
        (disk / "ballast").unlink()
        extract(str(packed), NAMES, disk / "out")
        assert_extracted(disk / "out")
