"""Folders of data that are full, read-only, forbidden, elsewhere or no folders: a fix is said, nothing is half-made."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from disks import as_nobody, fill, mounted
from source_changes import assert_nothing_prepared, packed, write_listops
from tiny_runs import ROOT
from tiny_sources import write_text
from trials import snapshot

from datamodules import ListOps

PAGE = 4096  # bytes
FILES = 13  # of four a split, and meta.json: on a tmpfs a page each


@pytest.fixture(autouse=True)
def listops(source: Path) -> Path:
    write_listops(source)
    return source


@pytest.fixture
def run(main, source) -> Callable[..., None]:
    """The command on the source, or on another one."""

    def prepare(data_dir: Path | str, source: Path | str = source, task: str = "listops", *more: str) -> None:
        config = f"--config={ROOT}/configs/{task}.yaml"
        main(["prepare", config, f"--data.data_dir={data_dir}", f"--data.source={source}", *more])

    return prepare


@pytest.fixture
def refused(run, capsys) -> Callable[..., str]:
    """What the command says, in its one line, when it stops with an exit status of 1."""

    def prepare(data_dir: Path | str, *named: str, **settings: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run(data_dir, **settings)
        said = capsys.readouterr().err
        assert stopped.value.code == 1
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        where = str(data_dir)
        for text in (where if where.isprintable() else repr(where), *named):
            assert text in said
        return said

    return prepare


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB."""
    with mounted(tmp_path / "disk", 2048) as folder:
        yield folder


def remount(folder: Path, option: str) -> None:
    """Read-only with `ro`, writable again with `rw`."""
    subprocess.run(["mount", "-o", f"remount,{option}", folder], check=True)


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A folder that others may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("pages_left", [0, 1, 6, FILES - 1])
def test_a_disk_that_fills(pages_left, disk, run, refused):
    """Real files, real pages: at the start, at a split's first file, in the middle, at meta.json."""
    filler = fill(disk, pages_left * PAGE)
    said = refused(disk, "free some space or set data.data_dir to a folder with room for about")
    assert "No space left on device" in said or "0 MB are free" in said
    filler.rename(disk / ".filler")
    assert_nothing_prepared(disk)
    (disk / ".filler").unlink()
    run(disk)


def test_a_disk_that_is_too_small_is_said_before_the_work(disk, refused, tmp_path):
    write_text(tmp_path / "text")
    refused(disk, "2 MB are free and about 68 MB are needed", source=tmp_path / "text", task="text")
    assert_nothing_prepared(disk)


def test_a_disk_that_is_read_only(disk, refused, run):
    remount(disk, "ro")
    refused(disk, "Read-only file system", "set data.data_dir to a folder that can be written to")
    remount(disk, "rw")
    run(disk)
    remount(disk, "ro")
    run(disk)


def test_a_disk_other_than_that_of_temporary_files(disk, run, monkeypatch, tmp_path):
    data_dir = disk / "a/new/one"
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    run(data_dir)
    assert (next(data_dir.glob("listops-*")) / "meta.json").is_file()


def test_a_folder_that_may_not_be_written(open_place, refused, source):
    public = shutil.copytree(source, open_place / "source")
    data_dir = open_place / "data"
    data_dir.mkdir(mode=0o555)
    for place in (data_dir, data_dir / "below"):
        with as_nobody():
            refused(place, "Permission denied", "a folder that you may read and write", source=public)
    assert list(data_dir.iterdir()) == []


@pytest.mark.parametrize(
    "closed", ["data", "data/listops-*", "data/*/train", "data/*/meta.json", "data/*/train/tokens.bin"]
)
def test_what_is_prepared_and_may_not_be_read(closed, open_place, run, refused, source):
    public = shutil.copytree(source, open_place / "source")
    run(open_place / "data", public)
    (path,) = open_place.glob(closed)
    mode = path.stat().st_mode
    path.chmod(0)
    with as_nobody():
        refused(open_place / "data", "Permission denied", "set data.data_dir", source=public)
    path.chmod(mode)
    run(open_place / "data", public)


def test_what_is_prepared_can_be_read_by_all(open_place, run, source):
    """A folder that a group shares, and one of it fills."""
    public = shutil.copytree(source, open_place / "source")
    run(open_place / "data", public)
    before = snapshot(open_place)
    with as_nobody():
        run(open_place / "data", public)
    assert snapshot(open_place) == before


NAMES = ("Übung и данные", "a b  c", "[/red] :smile: {x} %s $HOME", "-", "a\nb", "'\"\\", "..x", "日本" * 40)


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_legal(name, tmp_path, run, source, capsys):
    place = tmp_path / name
    place.mkdir(parents=True)
    other = source.rename(place / f"{place.name[:60]} source")
    run(place, other)
    run(place, other)
    assert str(place) in capsys.readouterr().out
    write_text(place / "text")
    run(place, packed(place / "text", f"{place.name[:60]}.tar.gz"), "text", "--data.val_size=10")


def make_file(path: Path) -> None:
    path.write_text("kept")


def link_to_nothing(path: Path) -> None:
    path.symlink_to("nothing")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


NO_FOLDERS = {
    "a file": (make_file, "data", "is a file, or a link to nothing"),
    "below a file": (make_file, "data/below/it", "is a file, or a link to nothing"),
    "a link to nothing": (link_to_nothing, "data", "is a file, or a link to nothing"),
    "a link to itself": (link_to_itself, "data", "is a file, or a link to nothing"),
    "a pipe": (os.mkfifo, "data", "is a file, or a link to nothing"),
    "a name too long": (None, "x" * 300, "a shorter path"),
    "a path too long": (None, "x/" * 2500, "a shorter path"),
    "a NUL": (None, "a\0b", "name another one"),
}


@pytest.mark.parametrize(("make", "name", "fix"), NO_FOLDERS.values(), ids=NO_FOLDERS)
def test_what_is_no_folder(make, name, fix, tmp_path, refused):
    if make:
        make(tmp_path / "data")
    before = snapshot(tmp_path)
    said = refused(f"{tmp_path}/{name}", fix)
    assert len(said) < 4 * len(f"{tmp_path}/{name}") + 300
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["~nobody-of-this-name/data", "a\0b", "\ud800"])
def test_what_can_be_no_path(name):
    with pytest.raises(ValueError, match=r"data\.data_dir='.*' cannot be a folder .*Fix: name another one"):
        ListOps(data_dir=name)


def link_to_a_folder(place: Path) -> None:
    place.symlink_to(place.parents[1] / "outside")


def link_to_a_file(place: Path) -> None:
    place.symlink_to(place.parents[1] / "outside/kept.txt")


MAKERS = (make_file, link_to_nothing, link_to_itself, link_to_a_folder, link_to_a_file, os.mkfifo, Path.mkdir)


@pytest.mark.parametrize("name", ["{}", "{}.partial", ".{}.lock"])
@pytest.mark.parametrize("make", MAKERS)
def test_something_else_in_its_place(make, name, run, refused, tmp_path):
    """A shared folder, in which somebody has put a link to what is not theirs."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept.txt").write_text("kept")
    run(tmp_path / "first")
    (folder,) = (path.name for path in (tmp_path / "first").glob("listops-*"))
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    make(data_dir / name.format(folder))
    before = snapshot(outside)
    if name == "{}":
        refused(data_dir, "has no meta.json. Fix: remove the folder")
    elif name == "{}.partial" or make in (make_file, os.mkfifo):
        run(data_dir)
    else:
        refused(data_dir, ".lock", "set data.data_dir")
    assert snapshot(outside) == before
