"""Text, from raw files to batches: every token, mask and label beside the value worked out by hand."""

import io
import tarfile

import pytest
from task_batches import assert_sequences, masks, padded, read

from datamodules import Protocol, Text

# Text: each review's bytes and tokens, in the order in which they are prepared.
REVIEWS = {
    "train/neg/0_3.txt": (b"Hi!", [73, 106, 34]),
    "train/neg/2_1.txt": (b"\xff\x00a", [256, 1, 98]),
    "train/neg/10_2.txt": (b"\xc3\xa9", [196, 170]),
    "train/neg/11_4.txt": (b" a\r\nb\n", [33, 98, 14, 11, 99, 11]),
    "train/pos/1_10.txt": (b"z" * 33, [123] * 33),
    "train/pos/3_7.txt": (b"0", [49]),
    "train/pos/20_8.txt": (b'"<br />', [35, 61, 99, 115, 33, 48, 63]),
    "train/pos/100_9.txt": (b"\xef\xbb\xbfA", [240, 188, 192, 66]),
    "test/neg/2_1.txt": (b"No", [79, 112]),
    "test/neg/10_2.txt": (b"~", [127]),
    "test/pos/0_10.txt": (b"w" * 31, [120] * 31),
    "test/pos/10_9.txt": (b"\x00\x00", [1, 1]),
}
TRAIN_REVIEWS = [name for name in REVIEWS if name.startswith("train")]
TEST_REVIEWS = [name for name in REVIEWS if name.startswith("test")]
NOT_REVIEWS = {
    "README": b"not a review",
    "imdb.vocab": b"the",
    "train/unsup/0_0.txt": b"no label",
    "train/urls_neg.txt": b"http://",
    "train/labeledBow.feat": b"9 0:1",
    "train/neg/._0_3.txt": b"Mac OS X",
    "test/pos/._10_9.txt": b"Mac OS X",
}


def write_tree(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def review_files():
    return {**{name: content for name, (content, _) in REVIEWS.items()}, **NOT_REVIEWS}


def write_reviews(tmp_path, kind):
    """The reviews as a folder, its parent or an archive, whose members are in reverse order; what `source` is."""
    if kind in ("folder", "parent"):
        write_tree(tmp_path / "raw/aclImdb", review_files())
        return tmp_path / ("raw/aclImdb" if kind == "folder" else "raw")
    path = tmp_path / f"aclImdb_v1.{kind}"
    with tarfile.open(path, f"w:{kind.removeprefix('tar').removeprefix('.')}") as archive:
        for name, content in reversed(review_files().items()):
            member = tarfile.TarInfo(f"aclImdb/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def assert_reviews(data, split):
    names = data.example_names(split)
    rows = [REVIEWS[name][1] for name in names]
    labels = [1 if "/pos/" in name else 0 for name in names]
    assert_sequences(read(data, split), rows, labels, 64 if "train/pos/1_10.txt" in names else 32)


@pytest.mark.parametrize("kind", ["folder", "parent", "tar", "tar.gz", "tar.xz", "tar.bz2"])
def test_text(kind, tmp_path, prepare):
    data = prepare(Text, write_reviews(tmp_path, kind), batch_size=4, val_size=4)
    train, val = data.example_names("train"), data.example_names("val")
    assert data.example_names("test") == TEST_REVIEWS
    for names in (train, val):
        assert names == [name for name in TRAIN_REVIEWS if name in names]
        assert sum("/pos/" in name for name in names) == 2
        assert len(names) == 4
    assert sorted(train + val) == sorted(TRAIN_REVIEWS)
    for split in ("train", "val", "test"):
        assert_reviews(data, split)


def test_text_draws_the_same_dev_set_from_a_folder_and_an_archive(tmp_path, prepare):
    folder = prepare(Text, write_reviews(tmp_path, "folder"), "data1", batch_size=4, val_size=4)
    archive = prepare(Text, write_reviews(tmp_path, "tar.gz"), "data2", batch_size=4, val_size=4)
    assert folder.example_names("val") == archive.example_names("val")


def test_text_draws_its_dev_set_at_random(tmp_path, prepare):
    """Half of each class, and neither its first nor its last reviews."""
    names = [f"{label}/{number}_5.txt" for label in ("neg", "pos") for number in range(60)]
    write_tree(tmp_path / "aclImdb", {f"train/{name}": b"a" for name in names})
    write_tree(tmp_path / "aclImdb", {"test/neg/0_1.txt": b"a", "test/pos/0_9.txt": b"a"})
    data = prepare(Text, tmp_path / "aclImdb", batch_size=80, val_size=40)
    val = [names.index(name.removeprefix("train/")) for name in data.example_names("val")]
    for first in (0, 60):
        drawn = [number - first for number in val if first <= number < first + 60]
        assert len(drawn) == 20
        assert min(drawn) < 20 < 40 <= max(drawn)


def test_text_with_the_test_set_as_dev_set(tmp_path, prepare):
    source = write_reviews(tmp_path, "folder")
    data = prepare(Text, source, batch_size=8, val_size=4, protocol=Protocol(val_is_test=True))
    assert data.example_names("train") == TRAIN_REVIEWS
    assert data.example_names("val") == data.example_names("test") == TEST_REVIEWS
    for split in ("train", "val", "test"):
        assert_reviews(data, split)


def write_long_reviews(tmp_path):
    """The second test review is of 4096 x and then a y; all others are ab."""
    names = ["train/neg/0_1.txt", "train/neg/1_1.txt", "train/pos/0_9.txt", "train/pos/1_9.txt", "test/neg/0_1.txt"]
    write_tree(tmp_path / "aclImdb", {**dict.fromkeys(names, b"ab"), "test/pos/0_9.txt": b"x" * 4096 + b"y"})
    return tmp_path / "aclImdb"


@pytest.mark.parametrize(
    ("settings", "length", "width"),
    [
        ({}, 4096, 4096),
        ({"max_bytes": 70}, 70, 96),
        ({"protocol": Protocol(document_bytes=40)}, 40, 64),
        ({"max_bytes": 30, "protocol": Protocol(document_bytes=40)}, 30, 32),
        ({"max_bytes": 70, "protocol": Protocol(pad_to_max_length=True)}, 70, 128),
        ({"max_bytes": 128, "protocol": Protocol(pad_to_max_length=True)}, 128, 128),
        ({"max_bytes": 128, "protocol": Protocol(pad_to_max_length=True, document_bytes=40)}, 40, 128),
    ],
)
def test_text_is_cut(settings, length, width, tmp_path, prepare):
    data = prepare(Text, write_long_reviews(tmp_path), batch_size=2, val_size=2, **settings)
    assert_sequences(read(data, "test"), [[98, 99], [121] * length], [0, 1], width)
    train_width = 128 if width == 128 else 32
    assert_sequences(read(data, "train"), [[98, 99], [98, 99]], [0, 1], train_width)


@pytest.mark.parametrize(("max_bytes", "max_length"), [(1, 64), (64, 64), (70, 128), (4096, 4096)])
def test_longest_text_is_a_multiple_of_64(max_bytes, max_length):
    assert Text(max_bytes=max_bytes).max_length == max_length


def test_text_batches(tmp_path, prepare):
    """Small ones: each padded for itself, each review evaluated once, what is left of an epoch left out."""
    source = write_reviews(tmp_path, "folder")
    data = prepare(Text, source, batch_size=3, eval_batch_size=3, val_size=4, protocol=Protocol(val_is_test=True))
    train, test = list(data.train_dataloader()), list(data.test_dataloader())
    assert [len(batch.label) for batch in train] == [3, 3]
    assert len(test) == 2
    assert max(len(batch.label) for batch in test) <= 3
    assert sorted(example for batch in test for example in batch.example.tolist()) == [0, 1, 2, 3]
    for batches, names in ((train, TRAIN_REVIEWS), (test, TEST_REVIEWS)):
        for batch in batches:
            chosen = [names[example] for example in batch.example]
            width = 64 if "train/pos/1_10.txt" in chosen else 32
            rows = [REVIEWS[name][1] for name in chosen]
            assert batch.tokens.tolist() == padded(rows, width)
            assert batch.mask.tolist() == masks(map(len, rows), width)
            assert batch.label.tolist() == ["/pos/" in name for name in chosen]


def test_cut_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match=r"data\.protocol\.document_bytes=-5 must be at least 1"):
        Protocol(document_bytes=-5)
