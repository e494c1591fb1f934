"""Sources that are missing, cut short or damaged: said by name, and nothing half-made is left."""

import io
import os
import re
import shutil
import sys

import numpy as np
import pytest
from source_changes import (
    LEVEL,
    METADATA,
    ROW,
    WRITERS,
    array,
    assert_nothing_prepared,
    both,
    cut,
    cut_at_the_last,
    emptied,
    gone,
    holding,
    listed,
    names,
    nothing_but,
    pair,
    picture,
    prepared,
    row,
    skipped,
    train_row,
    write_listops,
    write_pathfinder,
)

from datamodules import Image, ListOps, Pathfinder, Retrieval, Text
from datamodules.files import PreparedDataError
from datamodules.prepared.format import read_meta

pytestmark = pytest.mark.usefixtures("no_processes")


BAD_TEXT = {
    "no folder": (gone(""), r"source .*aclImdb"),
    "no split": (gone("test"), r"source has no review test/neg"),
    "no class": (gone("train/pos"), r"source has no review train/pos"),
    "empty class": (nothing_but("test/pos"), r"source has no review test/pos"),
    "all reviews empty": (emptied("test/*/*.txt"), r"'test' has no example; 10 skipped; .*test/neg/0_2.txt"),
}
BAD_LISTOPS = {
    "no folder": (gone(""), r"no basic_train.tsv in .*source.*Long Range Arena release"),
    "no validation file": (gone("basic_val.tsv"), r"basic_val.tsv"),
    "no test file": (gone("basic_test.tsv"), r"basic_test.tsv"),
    "folder for a file": (lambda source: (source / "basic_val.tsv").rename(source / "x"), r"basic_val.tsv"),
    "empty file": (holding("basic_val.tsv", b""), r"basic_val.tsv"),
    "header alone": (holding("basic_val.tsv", b"Source\tTarget\r\n"), r"basic_val.tsv"),
    "no header": (row("basic_train.tsv", 1, ROW), r"basic_train.tsv:1: .*header Source Target"),
    "one column": (train_row("( ( ( [MAX 4 ) 2 ) ] )"), r"basic_train.tsv:3: 1 .*columns, expected 2"),
    "three columns": (train_row(f"{ROW}\t4"), r"basic_train.tsv:3: 3 .*columns, expected 2"),
    "blank line": (train_row(""), r"basic_train.tsv:3: "),
    "unknown token": (train_row("( ( ( [MAX 4 ) x2 ) ] )\t4"), r"basic_train.tsv:3: 'x2' is not a valid token"),
    "not UTF-8": (
        holding("basic_test.tsv", b"Source\tTarget\n[MAX \xff ]\t4\n"),
        r"basic_test.tsv:2: .*xff' is not a valid token",
    ),
    "unclosed operator": (
        train_row("( ( ( [MAX 4 ) 2 )\t4"),
        r"basic_train.tsv:3: 1 operators and 0 closing brackets, expected equal numbers",
    ),
    "padding": (train_row("( ( ( [MAX 4 ) <pad> ) ] )\t4"), r"basic_train.tsv:3: '<pad>' is not a valid token"),
    "label 10": (train_row(ROW[:-1] + "10"), r"basic_train.tsv:3: label '10' is not one of 0 ... 9"),
    "label -1": (train_row(ROW[:-1] + "-1"), r"basic_train.tsv:3: label '-1' is not one of 0 ... 9"),
    "label 1.5": (train_row(ROW[:-1] + "1.5"), r"basic_train.tsv:3: label '1.5' is not one of 0 ... 9"),
    "label 0_1": (train_row(ROW[:-1] + "0_1"), r"basic_train.tsv:3: label '0_1' is not one of 0 ... 9"),
    "label of text": (train_row(ROW[:-1] + "four"), r"basic_train.tsv:3: label 'four' is not one of 0 ... 9"),
    "no label": (train_row(ROW[:-1]), r"basic_train.tsv:3: label '' is not one of 0 ... 9"),
    "no expression": (train_row("\t4"), r"basic_train.tsv:3: 0 tokens"),
    "parentheses alone": (train_row("( ( ) )\t4"), r"basic_train.tsv:3: 0 tokens"),
    "too long": (train_row("[SM " + "1 " * 1998 + "]\t8"), r"basic_train.tsv:3: 2000 tokens, .*1999 .*max_length"),
}
BAD_RETRIEVAL = {
    "no folder": (gone(""), r"source.*Long Range Arena release.*https://"),
    "no eval file": (gone("new_aan_pairs.eval.tsv"), r"new_aan_pairs.eval.tsv"),
    "empty file": (holding("new_aan_pairs.test.tsv", b""), r"new_aan_pairs.test.tsv"),
    "four columns": (pair("1.0\tA\tB\ttext"), r"new_aan_pairs.train.tsv:3: 4 .*columns, expected 5"),
    "six columns": (pair("1.0\tA\tB\ttext\ttext\ttext"), r"new_aan_pairs.train.tsv:3: 6 .*columns, expected 5"),
    "cut in a row": (cut_at_the_last("new_aan_pairs.train.tsv", b"\t"), r"new_aan_pairs.train.tsv:24: 4 .*columns"),
    "label 2.0": (pair("2.0\tA\tB\ttext\ttext"), r"new_aan_pairs.train.tsv:3: label '2.0' is not one of 0 ... 1"),
    "label nan": (pair("nan\tA\tB\ttext\ttext"), r"new_aan_pairs.train.tsv:3: label 'nan' is not one of 0 ... 1"),
    "label of text": (pair("yes\tA\tB\ttext\ttext"), r"new_aan_pairs.train.tsv:3: label 'yes' is not one of 0 ... 1"),
    "no label": (pair("\tA\tB\ttext\ttext"), r"new_aan_pairs.train.tsv:3: label '' is not one of 0 ... 1"),
    "all documents empty": (
        holding("new_aan_pairs.eval.tsv", b"1.0\tA\tB\ttext\t\n"),
        r"'val' has no example; 1 skipped; .*new_aan_pairs.eval.tsv:1",
    ),
}
BAD_IMAGE = {
    "no folder": (gone(""), r"source/train.*cifar-10-batches-py"),
    "no test folder": (gone("test"), r"source/test "),
    "nine classes": (gone("train/frog"), r"source/train has the folders \['airplane'.*expected"),
    "eleven classes": (lambda source: (source / "train/zebra").mkdir(), r"source/train has the folders .*'zebra'"),
    "another class": (lambda source: (source / "test/cat").rename(source / "test/zebra"), r"source/test .*'zebra'"),
    "empty class": (nothing_but("train/truck"), r"train/truck"),
    "too large": (picture("train/cat/0002.png", 33, 32), r"train/cat/0002.png: .*33×32 .*32×32"),
    "too small": (picture("test/cat/0000.png", 31, 31), r"test/cat/0000.png: .*31×31 .*32×32"),
    "all pictures empty": (emptied("test/*/*.png"), r"'test' has no example; 10 skipped; .*airplane/0000.png"),
}
BAD_PATHFINDER = {
    "no folder": (gone(""), r"no curv_contour_length_14/metadata in .*source.*Long Range Arena release"),
    "no metadata folder": (gone(f"{LEVEL}/metadata"), r"no curv_contour_length_14/metadata in .*source"),
    "no metadata": (nothing_but(f"{LEVEL}/metadata"), r"curv_contour_length_14/metadata has no .npy file"),
    "empty metadata": (holding(METADATA, b""), r"metadata/1.npy"),
    "three columns": (listed("imgs/1 sample_2.png 2"), r"metadata/1.npy:3: 3 columns"),
    "label 2": (listed("imgs/1 sample_2.png 2 2 1.8"), r"metadata/1.npy:3: label '2' is not one of 0 ... 1"),
    "label of text": (listed("imgs/1 sample_2.png 2 no 1.8"), r"metadata/1.npy:3: label 'no' is not one of 0 ... 1"),
    "parent folder": (listed("imgs/../../../.. x.png 2 0"), r"metadata/1.npy:3: imgs/../../../../x.png lies outside"),
    "parent in the file": (listed("imgs/1 ../../x.png 2 0"), r"metadata/1.npy:3: .*lies outside"),
    "absolute folder": (listed("/imgs/1 x.png 2 0"), r"metadata/1.npy:3: /imgs/1/x.png lies outside"),
    "absolute file": (listed("imgs/1 /x.png 2 0"), r"metadata/1.npy:3: /x.png lies outside"),
    "array cut short": (
        both(array(np.full((10, 5), "imgs/1")), cut(METADATA)),
        r"metadata/1.npy: not an array",
    ),
    "array of a wrong header": (holding(METADATA, b"\x93NUMPY\x01\x00\x03\x00{(\n"), r"metadata/1.npy"),
    "array beyond Unicode": (array(np.full((10, 20), 2**31 - 1, dtype=np.uint32).view("<U4")), r"metadata/1.npy"),
    "array in three dimensions": (array(np.zeros((2, 5, 5))), r"metadata/1.npy"),
    "array of bytes not ASCII": (array(np.array([[b"imgs/1", b"\xe9.png", b"2", b"0"]])), r"metadata/1.npy"),
    "array of no column": (array(np.zeros((2, 0))), r"metadata/1.npy"),
    "array too large": (
        holding(
            METADATA,
            b"\x93NUMPY\x01\x00\x46\x00"
            + b"{'descr':'<U9','fortran_order':False,'shape':(9999999999999,5)}".ljust(69)
            + b"\n",
        ),
        r"metadata/1.npy",
    ),
    "wrong size": (picture(f"{LEVEL}/imgs/1/sample_2.png", 32, 64), r"imgs/1/sample_2.png: .*32×64 .*32×32"),
    "all pictures empty": (
        emptied(f"{LEVEL}/imgs/*/*.png"),
        r"'train' has no example; 16 skipped; .*imgs/0/sample_0.png: empty",
    ),
}
BAD = {Text: BAD_TEXT, ListOps: BAD_LISTOPS, Retrieval: BAD_RETRIEVAL, Image: BAD_IMAGE, Pathfinder: BAD_PATHFINDER}


@pytest.mark.parametrize(
    ("task", "damage", "message"),
    [
        pytest.param(task, damage, message, id=f"{task.task}, {name}")
        for task, cases in BAD.items()
        for name, (damage, message) in cases.items()
    ],
)
def test_a_bad_source_is_said_and_leaves_nothing(task, damage, message, source, prepared_dir):
    WRITERS[task](source)
    damage(source)
    with pytest.raises(PreparedDataError, match=message):
        prepared(task, source, prepared_dir)
    assert_nothing_prepared(prepared_dir)
    shutil.rmtree(source, ignore_errors=True)
    WRITERS[task](source)
    prepared(task, source, prepared_dir)


NOT_A_PICTURE = b"<html>404 not found</html>"
SKIPPED = {
    "text, empty": (Text, emptied("train/pos/3_9.txt"), r"train/pos/3_9.txt: .*empty", "train/pos/3_9.txt"),
    "text, empty test": (Text, emptied("test/neg/0_2.txt"), r"test/neg/0_2.txt: .*empty", "test/neg/0_2.txt"),
    "retrieval, no first": (Retrieval, pair("1.0\tP2\tQ2\t\ttext"), r"train.tsv:3: .*empty.*P2 Q2", "P2 Q2"),
    "retrieval, no second": (Retrieval, pair("1.0\tP2\tQ2\ttext\t"), r"train.tsv:3: .*empty.*P2 Q2", "P2 Q2"),
    "image, empty": (Image, emptied("train/cat/0002.png"), r"cat/0002.png: empty", "train/cat/0002.png"),
    "image, truncated": (Image, cut("train/cat/0002.png"), r"cat/0002.png: ", "train/cat/0002.png"),
    "image, no picture": (
        Image,
        holding("test/cat/0000.png", NOT_A_PICTURE),
        r"cat/0000.png: broken, or not a picture",
        "test/cat/0000.png",
    ),
    "pathfinder, missing": (
        Pathfinder,
        gone(f"{LEVEL}/imgs/1/sample_2.png"),
        r"imgs/1/sample_2.png: no such file",
        "imgs/1/sample_2.png",
    ),
    "pathfinder, empty": (
        Pathfinder,
        emptied(f"{LEVEL}/imgs/1/sample_9.png"),
        r"imgs/1/sample_9.png: empty",
        "imgs/1/sample_9.png",
    ),
    "pathfinder, no name": (
        Pathfinder,
        listed("imgs/1 sample_\0.png 2 0 1.8"),
        r"imgs/1/sample_.*png: ",
        "imgs/1/sample_2.png",
    ),
    "pathfinder, truncated": (
        Pathfinder,
        cut(f"{LEVEL}/imgs/0/sample_0.png"),
        r"imgs/0/sample_0.png: ",
        "imgs/0/sample_0.png",
    ),
}


@pytest.mark.parametrize(("task", "damage", "reason", "name"), SKIPPED.values(), ids=SKIPPED)
def test_one_bad_example_is_skipped_and_named(task, damage, reason, name, source, prepared_dir):
    WRITERS[task](source)
    whole = names(prepared(task, source, prepared_dir / "whole"))
    damage(source)
    data = prepared(task, source, prepared_dir / "damaged")
    lost = whole - names(data)
    assert [named for _, named in lost] == [name]
    assert names(data) < whole
    ((split, said),) = skipped(data)
    assert (split, name) in lost
    assert re.search(reason, said)


def test_what_is_skipped_is_said_once(source, prepared_dir, capsys):
    WRITERS[Text](source)
    emptied("test/pos/[0-3]_9.txt")(source)
    prepared(Text, source, prepared_dir)
    said = capsys.readouterr().out
    assert said.count("test: 4 skipped") == 1
    assert said.count("test/pos/2_9.txt") == 1


def test_names_that_are_not_utf8_are_read_and_said(source, prepared_dir, monkeypatch):
    WRITERS[Text](source)
    folder = os.fsencode(source / "train/neg")
    os.rename(folder + b"/0_2.txt", folder + b"/0_\xe9.txt")
    os.rename(folder + b"/1_2.txt", folder + b"/1_\xe9.txt")
    emptied("train/neg/1_*.txt")(source)
    # Strict, as a terminal is and the tests' own capture is not.
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    data = prepared(Text, source, prepared_dir)
    assert len(names(data)) == 39
    ((_, reason),) = skipped(data)
    assert "train/neg/1_" in reason


def test_listops_with_line_feeds_alone_is_the_same(source, prepared_dir):
    write_listops(source)
    first = prepared(ListOps, source, prepared_dir / "1")
    for path in source.iterdir():
        path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n"))
    second = prepared(ListOps, source, prepared_dir / "2")
    assert read_meta(first.folder)["splits"] == read_meta(second.folder)["splits"]


def test_metadata_of_another_system_is_left_alone(source, prepared_dir):
    """Like the dot files beside reviews and pictures."""
    write_pathfinder(source)
    holding(f"{LEVEL}/metadata/._1.npy", b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X")(source)
    assert len(names(prepared(Pathfinder, source, prepared_dir))) == 20
