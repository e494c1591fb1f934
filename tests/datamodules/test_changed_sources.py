"""Sources that change or go after they were prepared, and what the command says."""

import shutil
from pathlib import Path

import pytest
from source_changes import (
    LEVEL,
    METADATA,
    WRITERS,
    Change,
    assert_nothing_prepared,
    gone,
    names,
    nothing_but,
    prepared,
    train_row,
    write_archive,
    write_listops,
)
from tiny_runs import ROOT

from datamodules import Image, ListOps, Pathfinder, Retrieval, Text
from datamodules.files import PreparedDataError

pytestmark = pytest.mark.usefixtures("no_processes")


def longer(name: str) -> Change:
    def change(source: Path) -> None:
        content = (source / name).read_bytes()
        (source / name).write_bytes(content + content.splitlines(keepends=True)[-1])

    return change


def one_more(name: str, other: str) -> Change:
    return lambda source: shutil.copy(source / name, source / other)


CHANGED = {
    "pathfinder, more metadata": (Pathfinder, one_more(METADATA, f"{LEVEL}/metadata/2.npy"), "metadata/2.npy"),
    "text": (Text, one_more("test/pos/0_9.txt", "test/pos/77_9.txt"), "test/pos"),
    "image": (Image, one_more("test/cat/0000.png", "test/cat/0001.png"), "test/cat"),
    "retrieval": (Retrieval, longer("new_aan_pairs.eval.tsv"), "new_aan_pairs.eval.tsv"),
    "listops": (ListOps, longer("basic_val.tsv"), "basic_val.tsv"),
    "pathfinder": (Pathfinder, longer(METADATA), "metadata/1.npy"),
}


@pytest.mark.parametrize(("task", "change", "name"), CHANGED.values(), ids=CHANGED)
def test_a_source_that_changes_is_named(task, change, name, source, prepared_dir):
    WRITERS[task](source)
    folder = prepared(task, source, prepared_dir).folder
    prepared(task, source, prepared_dir)
    change(source)
    with pytest.raises(PreparedDataError, match=f"{folder} was made from {name}"):
        prepared(task, source, prepared_dir)
    shutil.rmtree(folder)
    prepared(task, source, prepared_dir)


def test_relative_source_is_another_one_elsewhere(source, tmp_path, prepared_dir, monkeypatch):
    WRITERS[Text](source)
    WRITERS[Text](tmp_path / "other/source")
    (tmp_path / "other/source/test/neg/0_2.txt").write_bytes(b"another review")
    folders = []
    for place in (tmp_path, tmp_path / "other"):
        monkeypatch.chdir(place)
        folders.append(prepared(Text, "source", prepared_dir).folder)
    assert folders[0] != folders[1]
    assert prepared(Text, source.parent / "other/../other/source", prepared_dir).folder == folders[1]


def test_hidden_files_are_no_change(source, prepared_dir):
    WRITERS[Image](source)
    prepared(Image, source, prepared_dir)
    (source / "train/cat/.DS_Store").write_bytes(b"x")
    (source / "train/.DS_Store").write_bytes(b"x")
    prepared(Image, source, prepared_dir)


def test_an_archive_that_changes_is_named(source, prepared_dir):
    path = write_archive(source, "a.tar.gz")
    prepared(Text, path, prepared_dir)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(PreparedDataError, match=r"was made from a.tar.gz"):
        prepared(Text, path, prepared_dir)


@pytest.mark.parametrize("remove", [gone(""), nothing_but("")], ids=["gone", "an empty folder"])
@pytest.mark.parametrize("task", [Text, Image, Retrieval, ListOps, Pathfinder])
def test_what_is_prepared_needs_no_source(task, remove, source, prepared_dir):
    WRITERS[task](source)
    whole = names(prepared(task, source, prepared_dir))
    remove(source)
    assert names(prepared(task, source, prepared_dir)) == whole


@pytest.fixture
def prepare_listops(source, prepared_dir, main):
    """The command on the source."""

    def run(*more: str) -> None:
        config = ("--config", f"{ROOT}/configs/listops.yaml")
        main(["prepare", *config, "--data.source", str(source), "--data.data_dir", str(prepared_dir), *more])

    return run


def assert_one_line(said: str, *named: str) -> None:
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    for name in named:
        assert name in said


def test_the_command_says_a_bad_source_in_one_line(source, prepared_dir, prepare_listops, capsys):
    write_listops(source)
    train_row("( ( ( [MAX 4 ) x2 ) ] )\t4")(source)
    with pytest.raises(SystemExit) as stopped:
        prepare_listops()
    assert stopped.value.code == 1
    assert_one_line(capsys.readouterr().err, "basic_train.tsv:3", "'x2'")
    assert_nothing_prepared(prepared_dir)


def test_the_command_compares_checksums(source, prepared_dir, prepare_listops, capsys):
    write_listops(source)
    prepare_listops()
    (tokens,) = prepared_dir.glob("listops-*/val/tokens.bin")
    content = bytearray(tokens.read_bytes())
    content[3] ^= 1
    tokens.write_bytes(content)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        prepare_listops()
    assert stopped.value.code == 1
    assert_one_line(capsys.readouterr().err, str(tokens))
