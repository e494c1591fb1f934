"""A prepared folder is whole or absent, is made once, and says what is wrong with it and what to do."""

import errno
import io
import json
import pickle
import shutil
import threading
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules import files
from datamodules.examples import Chunk, Example, Skipped, packed
from datamodules.files import PreparedDataError
from datamodules.prepared import format, writing
from datamodules.prepared.format import folder_name, read_meta, verify
from datamodules.prepared.layout import UNLABELLED, Layout
from datamodules.prepared.split import Split
from datamodules.prepared.writing import prepare

SETTINGS = {"bounds": {"min_length": 1}, "sizes": [3, 2], "margins": (1, 2)}  # JSON gives the tuple back as a list
SEQUENCES = {"train": [[1, 2, 3], [255], [4, 0, 6, 7]], "val": [[8], [9, 9]]}
LABELS = {"train": [0, 1, 9], "val": [3, 2]}
LAYOUT = Layout(1, 10, 4, fixed_length=False, lowest_token=0, highest_token=255)


def load(folder: Path, settings: dict[str, Any], split: str) -> Split:
    return format.load(folder, settings, split, LAYOUT)


def chunk(sequences: list[list[int]], labels: list[int]) -> Chunk:
    lengths = np.array([len(sequence) for sequence in sequences])
    return Chunk(np.concatenate(sequences).astype(np.uint8), lengths, np.array(labels, dtype=np.uint8))


def splits(made: list[str] | None = None) -> dict[str, Iterator[Chunk]]:
    """The splits, lazily, in chunks of one and two examples; `made` gets the name of each that is iterated."""

    def chunks(split: str) -> Iterator[Chunk]:
        if made is not None:
            made.append(split)
        for part in (slice(0, 1), slice(1, None)):
            yield chunk(SEQUENCES[split][part], LABELS[split][part])

    return {split: chunks(split) for split in SEQUENCES}


def make(root: Path, settings: dict[str, Any] = SETTINGS, made: list[str] | None = None, needed: int = 1) -> Path:
    return prepare(root, "task", settings, lambda: splits(made), lambda: needed, LAYOUT.dtypes)


def assert_whole(folder: Path, settings: dict[str, Any] = SETTINGS) -> None:
    for name, sequences in SEQUENCES.items():
        split = load(folder, settings, name)
        assert np.split(split.tokens, split.offsets[1:-1])[-1].tolist() == sequences[-1]
        assert split.tokens.tolist() == [token for sequence in sequences for token in sequence]
        assert split.offsets.tolist() == [0, *np.cumsum([len(sequence) for sequence in sequences])]
        assert split.labels.tolist() == LABELS[name]


def visible(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if not path.name.endswith(".lock"))


def test_what_is_written_is_what_is_read(tmp_path):
    folder = make(tmp_path / "new" / "root")
    assert folder == tmp_path / "new" / "root" / folder_name("task", SETTINGS)
    assert_whole(folder)
    split = load(folder, SETTINGS, "train")
    assert (split.tokens.dtype, split.offsets.dtype, split.labels.dtype) == (np.uint8, np.int64, np.uint8)
    assert (len(split), split.lengths.tolist()) == (3, [[3], [1], [4]])
    assert isinstance(split.tokens, np.memmap)
    assert not split.tokens.flags.writeable
    meta = read_meta(folder)
    assert (meta["task"], meta["settings"]["sizes"]) == ("task", [3, 2])
    assert visible(folder.parent) == [folder.name], "no half-made folder beside it"


def test_folder_is_made_once_for_the_same_settings(tmp_path):
    made: list[str] = []
    folder = make(tmp_path, made=made)
    again = make(tmp_path, settings=dict(reversed(SETTINGS.items())), made=made, needed=10**18)
    assert again == folder
    assert made == ["train", "val"]


def test_other_settings_have_another_folder(tmp_path, monkeypatch):
    folders = {make(tmp_path), make(tmp_path, {**SETTINGS, "sizes": [3, 3]}), make(tmp_path, {**SETTINGS, "more": 0})}
    following = format.FORMAT_VERSION + 1
    for module in (format, writing):
        monkeypatch.setattr(module, "FORMAT_VERSION", following)
    folders |= {make(tmp_path), prepare(tmp_path, "other", SETTINGS, splits, lambda: 1, LAYOUT.dtypes)}
    assert len(folders) == 5
    assert visible(tmp_path) == sorted(folder.name for folder in folders)


def change_meta(folder: Path, **changes: Any) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, **changes}))


def cut(folder: Path) -> None:
    with (folder / "train/tokens.bin").open("r+b") as file:
        file.truncate(5)


DAMAGE = {
    "cut": (cut, r"train/tokens.bin should have 8 bytes, found 5 bytes"),
    "too long": (lambda f: (f / "train/labels.bin").write_bytes(b"1234"), r"labels.bin should have 3 bytes, found 4"),
    "missing": (lambda f: (f / "train/offsets.bin").unlink(), r"train/offsets.bin should have 32 bytes, found nothing"),
    "no meta": (lambda f: (f / "meta.json").unlink(), r"meta.json cannot be read"),
    "not JSON": (lambda f: (f / "meta.json").write_text('{"format": 1,'), r"meta.json cannot be read"),
    "not a mapping": (lambda f: (f / "meta.json").write_text("[1]"), r"meta.json has format None"),
    "other version": (lambda f: change_meta(f, format=0), r"meta.json has format 0, this version reads 2"),
    "other settings": (lambda f: change_meta(f, settings={"sizes": 1}), r"meta.json was made with other settings"),
    "no split": (lambda f: change_meta(f, splits={}), r"does not describe split 'train'"),
    "no files": (lambda f: change_meta(f, splits={"train": {}}), r"meta.json: splits.train is {}, expected the files"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_the_advice_helps(damage, tmp_path):
    folder = make(tmp_path)
    spoil, message = DAMAGE[damage]
    spoil(folder)
    with pytest.raises(PreparedDataError, match=message) as caught:
        load(folder, SETTINGS, "train")
    assert str(folder) in str(caught.value)
    assert "Fix: remove the folder; the next run makes it again." in str(caught.value)
    shutil.rmtree(folder)
    assert_whole(make(tmp_path))


OTHER_LAYOUTS = {
    "two documents an example": ({"num_documents": 2}, r"offsets.bin has 3 documents, expected 2 for each of the 3"),
    "nine classes": ({"num_classes": 9}, r"labels.bin has label 9, none of 0 ... 8"),
    "three tokens at most": ({"max_length": 3}, r"offsets.bin has documents of 1 to 4 tokens, expected 1 to 3"),
    "four tokens each": ({"fixed_length": True}, r"offsets.bin has documents of 1 to 4 tokens, expected 4 to 4"),
    "0 is padding": ({"lowest_token": 1}, r"tokens.bin has tokens 0 to 255 from place 0, expected 1 to 255"),
    "few tokens": ({"highest_token": 254}, r"tokens.bin has tokens 0 to 255 from place 0, expected 0 to 254"),
}


@pytest.mark.parametrize(("other", "message"), OTHER_LAYOUTS.values(), ids=OTHER_LAYOUTS)
def test_what_another_task_wrote_is_refused(other, message, tmp_path):
    with pytest.raises(PreparedDataError, match=message):
        format.load(make(tmp_path), SETTINGS, "train", LAYOUT._replace(**other))


def test_folder_without_meta_is_named_before_the_work(tmp_path):
    (make(tmp_path) / "meta.json").unlink()
    made: list[str] = []
    with pytest.raises(PreparedDataError, match=r"has no meta\.json\. Fix: remove the folder"):
        make(tmp_path, made=made)
    assert made == []


def test_full_disk_leaves_nothing(tmp_path, monkeypatch):
    written = []

    class SmallDisk(io.FileIO):
        def write(self, data: bytes) -> int:
            if sum(written) + len(data) > 10:
                raise OSError(errno.ENOSPC, "No space left on device")
            written.append(len(data))
            return super().write(data)

    monkeypatch.setattr(writing, "open", SmallDisk, raising=False)
    with pytest.raises(PreparedDataError, match=r"No space left on device.* free some space or set data\.data_dir"):
        make(tmp_path)
    assert len(written) == 3, "it broke half way"
    assert visible(tmp_path) == []
    monkeypatch.undo()
    assert_whole(make(tmp_path))


def test_too_little_space_is_said_before_the_work(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 3 * 10**6, 3 * 10**6))
    made: list[str] = []
    with pytest.raises(PreparedDataError, match=r"3 MB are free and about 5 MB are needed.*about 5 MB"):
        make(tmp_path, made=made, needed=5 * 10**6)
    assert made == []
    assert visible(tmp_path) == []
    assert_whole(make(tmp_path, needed=3 * 10**6))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_work_leaves_nothing(error, tmp_path):
    def broken() -> Iterator[Chunk]:
        yield chunk([[1, 2]], [0])
        assert visible(tmp_path) == [folder_name("task", SETTINGS) + ".partial"]
        raise error("in the middle")

    with pytest.raises(error, match="in the middle"):
        prepare(tmp_path, "task", SETTINGS, lambda: {**splits(), "val": broken()}, lambda: 1, LAYOUT.dtypes)
    assert visible(tmp_path) == []
    assert_whole(make(tmp_path))


def test_remains_of_a_killed_process_are_not_used(tmp_path):
    """The three files are appended to, so what lies in them would stay."""
    remains = tmp_path / (folder_name("task", SETTINGS) + ".partial")
    (remains / "train").mkdir(parents=True)
    (remains / "train/tokens.bin").write_bytes(b"remains")
    (remains / "meta.json").write_text("{}")
    made: list[str] = []
    folder = make(tmp_path, made=made)
    assert made == ["train", "val"]
    assert_whole(folder)
    assert visible(tmp_path) == [folder.name]


def test_two_at_once_make_one_folder(tmp_path, monkeypatch):
    """The first is held in the middle of its work until the second has said that it waits."""
    working, waiting = threading.Event(), threading.Event()
    monkeypatch.setattr(files, "print", lambda *_, **__: waiting.set(), raising=False)
    made: list[str] = []

    def slow() -> Iterator[Chunk]:
        made.append("slow")
        working.set()
        assert waiting.wait(timeout=20), "the second did not wait"
        yield chunk(SEQUENCES["train"], LABELS["train"])

    results: list[Path] = []

    def first() -> None:
        results.append(
            prepare(tmp_path, "task", SETTINGS, lambda: {**splits(made), "train": slow()}, lambda: 1, LAYOUT.dtypes)
        )

    thread = threading.Thread(target=first)
    thread.start()
    assert working.wait(timeout=20)
    results.append(make(tmp_path, made=made))
    thread.join(timeout=20)
    assert made == ["slow", "val"], "the second found the folder"
    assert len(results) == 2
    assert len(set(results)) == 1
    assert_whole(results[0])


def test_root_that_cannot_be_written_is_named(tmp_path):
    """Under a regular file, which stops even a superuser."""
    (tmp_path / "file").write_text("")
    with pytest.raises(PreparedDataError, match=r"file/data/task-.*set data\.data_dir"):
        make(tmp_path / "file" / "data")


def test_verify_names_the_file_that_changed(tmp_path):
    folder = make(tmp_path)
    assert verify(folder) == 6
    path = folder / "val/tokens.bin"
    path.write_bytes(bytes([7, *path.read_bytes()[1:]]))
    with pytest.raises(PreparedDataError, match=r"val/tokens\.bin has sha256 \w+, it was \w+ when made"):
        verify(folder)


def test_names_and_what_was_skipped_are_kept(tmp_path):
    outcomes = [
        Example((np.ones(2, dtype=np.uint8),), 1, "a\nb"),
        Skipped("c: empty"),
        Example((np.ones(1),), 0, "d\xff"),
    ]
    folder = prepare(tmp_path, "task", {}, lambda: {"test": packed(outcomes)}, lambda: 1, LAYOUT.dtypes)
    assert load(folder, {}, "test").names() == ["a b", "d\xff"]
    assert read_meta(folder)["skipped"] == {"test": ["c: empty"]}
    assert load(make(tmp_path), SETTINGS, "val").names() == ["0", "1"]


def test_split_of_which_much_is_missing_is_refused(tmp_path):
    """A release that is not unpacked wholly; six of seven are more than the few that any may lack."""
    outcomes = [*[Skipped("c: no such file")] * 6, Example((np.ones(2, dtype=np.uint8),), 0)]
    with pytest.raises(PreparedDataError, match=r"'test' has 1 examples; 6 skipped; .*The source seems incomplete"):
        prepare(tmp_path, "task", {}, lambda: {"test": packed(outcomes)}, lambda: 1, LAYOUT.dtypes)
    assert visible(tmp_path) == []


def test_other_processes_map_a_split_and_get_no_copy(tmp_path):
    split = load(make(tmp_path), SETTINGS, "train")
    pickled = pickle.dumps(split)
    assert b"\x01\x02\x03\xff" not in pickled
    again = pickle.loads(pickled)
    assert isinstance(again.tokens, np.memmap)
    assert again.tokens.tolist() == split.tokens.tolist()
    plain = pickle.loads(pickle.dumps(Split(np.arange(3), np.array([0, 3]), np.array([1]))))
    assert plain.tokens.tolist() == [0, 1, 2]


def test_split_without_examples_is_refused(tmp_path):
    with pytest.raises(PreparedDataError, match=r"split 'test' has no example; 1 skipped; the first: c: empty"):
        prepare(tmp_path, "task", {}, lambda: {"test": packed([Skipped("c: empty")])}, lambda: 1, LAYOUT.dtypes)
    assert visible(tmp_path) == []


TOKEN_LABELS = LAYOUT._replace(token_labels=True, highest_token=300)
PER_TOKEN = [[UNLABELLED, 3], [9], [0, UNLABELLED, UNLABELLED]]


def make_labelled(root: Path, labels: list[list[int]]) -> Path:
    examples = [Example((np.array([300] * len(own), dtype=np.int16),), np.array(own, dtype=np.int16)) for own in labels]
    return prepare(root, "task", {}, lambda: {"train": packed(examples)}, lambda: 1, TOKEN_LABELS.dtypes)


def test_a_label_for_each_token(tmp_path):
    split = format.load(make_labelled(tmp_path, PER_TOKEN), {}, "train", TOKEN_LABELS)
    assert len(split) == 3
    assert (split.num_documents, split.lengths.tolist()) == (1, [[2], [1], [3]])
    assert split.tokens.tolist() == [300] * 6
    assert split.labels.tolist() == [label for own in PER_TOKEN for label in own]
    assert split.labels.dtype == np.int16
    copied = pickle.loads(pickle.dumps(split))
    assert (copied.token_labels, copied.labels.tolist()) == (True, split.labels.tolist())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[1], [UNLABELLED, UNLABELLED], [2]], r"labels.bin has no label for document 1"),
        ([[1], [10]], r"labels.bin has label 10, none of 0 ... 9"),
        ([[1], [-1]], r"labels.bin has label -1, none of 0 ... 9"),
    ],
)
def test_token_labels_that_no_task_has_written(labels, message, tmp_path):
    with pytest.raises(PreparedDataError, match=message):
        format.load(make_labelled(tmp_path, labels), {}, "train", TOKEN_LABELS)


def test_labels_of_examples_are_not_those_of_tokens(tmp_path):
    wide = LAYOUT._replace(token_labels=True)
    folder = prepare(tmp_path, "task", SETTINGS, splits, lambda: 1, {**LAYOUT.dtypes, "labels": "int16"})
    with pytest.raises(PreparedDataError, match=r"labels.bin has 3 labels, expected one for each of the 8 tokens"):
        format.load(folder, SETTINGS, "train", wide)


@pytest.mark.parametrize(("token", "label", "named"), [(256, 0, "tokens hold 256"), (1, 300, "labels hold 300")])
def test_numbers_beyond_the_task_s_are_refused(token, label, named, tmp_path):
    examples = [Example((np.array([token], dtype=np.int64),), label)]
    with pytest.raises(PreparedDataError, match=named):
        prepare(tmp_path, "task", {}, lambda: {"train": packed(examples)}, lambda: 1, LAYOUT.dtypes)
