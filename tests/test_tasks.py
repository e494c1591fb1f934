"""From each task's raw files to its batches: every token, mask and label beside the value worked out by hand."""

import hashlib
import io
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from torch.utils.data import random_split
from torchvision.datasets import CIFAR10

from datamodules import Image, ListOps, Pathfinder, PathX, Protocol, Retrieval, Text

TASKS = [Text, Image, Retrieval, ListOps, Pathfinder, PathX]


@pytest.fixture
def prepare(tmp_path):
    """`prepare(Text, source, ...)`: a module whose loaders are ready and whose evaluation splits are one batch."""

    def build(task, source, data_dir="data", eval_batch_size=64, **settings):
        source = None if source is None else str(source)
        data = task(
            data_dir=str(tmp_path / data_dir), source=source, eval_batch_size=eval_batch_size, num_workers=0, **settings
        )
        data.prepare_data()
        data.setup("fit")
        return data

    return build


def loader_of(data, split):
    return {"train": data.train_dataloader, "dev": data.val_dataloader, "test": data.test_dataloader}[split]()


def read(data, split):
    """The only batch of a split as lists, in the split's order."""
    (batch,) = loader_of(data, split)
    assert {batch.tokens.dtype, batch.label.dtype, batch.example.dtype} == {torch.int64}
    assert batch.mask is None or batch.mask.dtype == torch.bool
    assert batch.position is None or batch.position.dtype == torch.int64
    order = batch.example.argsort()
    batch = batch._make(None if field is None else field[order].tolist() for field in batch)
    assert batch.example == list(range(len(data.example_names(split))))
    return batch


def padded(rows, width):
    return [row + [0] * (width - len(row)) for row in rows]


def masks(lengths, width):
    return [[True] * length + [False] * (width - length) for length in lengths]


def assert_sequences(batch, rows, labels, width):
    assert batch.tokens == padded(rows, width)
    assert batch.mask == masks(map(len, rows), width)
    assert batch.label == labels
    assert batch.position is None


def assert_pictures(batch, rows, labels):
    assert batch.tokens == rows
    assert batch.label == labels
    assert batch.mask is None
    assert batch.position is None


@pytest.mark.parametrize("task", TASKS)
def test_task_says_what_it_is(task):
    assert task.__doc__
    assert task.citation
    assert task.licence
    assert len(task.class_names) == task.num_classes


@pytest.mark.parametrize(
    ("task", "vocab_size", "num_classes"),
    [(Text, 257, 2), (Image, 256, 10), (Retrieval, 257, 2), (ListOps, 16, 10), (Pathfinder, 256, 2), (PathX, 256, 2)],
)
def test_sizes_that_the_model_takes(task, vocab_size, num_classes):
    assert (task.vocab_size, task.num_classes) == (vocab_size, num_classes)


def test_fixed_sizes():
    assert Retrieval.num_documents == 2
    assert Image.max_length == 1024


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
    data = prepare(Text, write_reviews(tmp_path, kind), batch_size=4, dev_size=4)
    train, dev = data.example_names("train"), data.example_names("dev")
    assert data.example_names("test") == TEST_REVIEWS
    for names in (train, dev):
        assert names == [name for name in TRAIN_REVIEWS if name in names]
        assert sum("/pos/" in name for name in names) == 2
        assert len(names) == 4
    assert sorted(train + dev) == sorted(TRAIN_REVIEWS)
    for split in ("train", "dev", "test"):
        assert_reviews(data, split)


def test_text_draws_the_same_dev_set_from_a_folder_and_an_archive(tmp_path, prepare):
    folder = prepare(Text, write_reviews(tmp_path, "folder"), "data1", batch_size=4, dev_size=4)
    archive = prepare(Text, write_reviews(tmp_path, "tar.gz"), "data2", batch_size=4, dev_size=4)
    assert folder.example_names("dev") == archive.example_names("dev")


def test_text_draws_its_dev_set_at_random(tmp_path, prepare):
    """Half of each class, and neither its first nor its last reviews."""
    names = [f"{label}/{number}_5.txt" for label in ("neg", "pos") for number in range(60)]
    write_tree(tmp_path / "aclImdb", {f"train/{name}": b"a" for name in names})
    write_tree(tmp_path / "aclImdb", {"test/neg/0_1.txt": b"a", "test/pos/0_9.txt": b"a"})
    data = prepare(Text, tmp_path / "aclImdb", batch_size=80, dev_size=40)
    dev = [names.index(name.removeprefix("train/")) for name in data.example_names("dev")]
    for first in (0, 60):
        drawn = [number - first for number in dev if first <= number < first + 60]
        assert len(drawn) == 20
        assert min(drawn) < 20 < 40 <= max(drawn)


def test_text_with_the_test_set_as_dev_set(tmp_path, prepare):
    source = write_reviews(tmp_path, "folder")
    data = prepare(Text, source, batch_size=8, dev_size=4, protocol=Protocol(dev_is_test=True))
    assert data.example_names("train") == TRAIN_REVIEWS
    assert data.example_names("dev") == data.example_names("test") == TEST_REVIEWS
    for split in ("train", "dev", "test"):
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
    data = prepare(Text, write_long_reviews(tmp_path), batch_size=2, dev_size=2, **settings)
    assert_sequences(read(data, "test"), [[98, 99], [121] * length], [0, 1], width)
    train_width = 128 if width == 128 else 32
    assert_sequences(read(data, "train"), [[98, 99], [98, 99]], [0, 1], train_width)


@pytest.mark.parametrize(("max_bytes", "max_length"), [(1, 64), (64, 64), (70, 128), (4096, 4096)])
def test_longest_text_is_a_multiple_of_64(max_bytes, max_length):
    assert Text(max_bytes=max_bytes).max_length == max_length


def test_text_batches(tmp_path, prepare):
    """Small ones: each padded for itself, each review evaluated once, what is left of an epoch left out."""
    source = write_reviews(tmp_path, "folder")
    data = prepare(Text, source, batch_size=3, eval_batch_size=3, dev_size=4, protocol=Protocol(dev_is_test=True))
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


# Image: grey pictures, each of one value, but for four pixels. Weighed by either formula:
#                       TensorFlow's                            pil
#   (0, 255, 0)         255.5 * 0.587 = 149.98                  (9809850 + 32768) / 65536 = 150.19
#   (12, 34, 56)        255.5 * 29.9288 / 255 = 29.99           (1961496 + 32768) / 65536 = 30.43
#   (255, 0, 0)         255.5 * 0.2989 = 76.37                  (4996725 + 32768) / 65536 = 76.74
#   (0, 0, 200)         255.5 * 22.8 / 255 = 22.84              (1494200 + 32768) / 65536 = 23.30
#   (v, v, v)           255.5 * 0.9999 v / 255 = 1.0019 v       v + 0.5
CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
COLOURS = {(0, 31): (0, 255, 0), (1, 0): (12, 34, 56), (1, 1): (255, 0, 0), (31, 31): (0, 0, 200)}
# Class c has the pictures 10 c + 1 to 10 c + 3 to train with and 200 + c to test with.
TRAIN_PICTURES = [10 * label + copy for label in range(10) for copy in (1, 2, 3)]
TEST_PICTURES = list(range(200, 210))


def grey_row(value, grey="tensorflow"):
    green, dark, red, blue = {"tensorflow": (149, 29, 76, 22), "pil": (150, 30, 76, 23)}[grey]
    return [value] * 31 + [green] + [dark, red] + [value] * 989 + [blue]


def colour_picture(value):
    picture = np.full((32, 32, 3), value, dtype=np.uint8)
    for place, colour in COLOURS.items():
        picture[place] = colour
    return picture


def save_picture(path, picture, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    PillowImage.fromarray(picture).save(path, **settings)


def write_class_folders(folder):
    """Made in reverse, so that an order by time would be wrong."""
    for value in reversed(TRAIN_PICTURES):
        save_picture(folder / "train" / CIFAR_CLASSES[value // 10] / f"{value}.png", colour_picture(value))
    for value in reversed(TEST_PICTURES):
        save_picture(folder / "test" / CIFAR_CLASSES[value - 200] / f"{value}.png", colour_picture(value))
    return folder


def write_pickles(folder, monkeypatch):
    """torchvision's layout; its check sums made those of these files."""
    folder = folder / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    sums = {}

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(values, labels):
        data = np.stack([colour_picture(value).transpose(2, 0, 1).reshape(3072) for value in values])
        return {"data": data, "labels": labels, "filenames": [f"{value}.png" for value in values]}

    mixed = TRAIN_PICTURES[::2] + TRAIN_PICTURES[1::2]
    write("data_batch_1", batch(mixed[:12], [value // 10 for value in mixed[:12]]))
    write("data_batch_2", batch(mixed[12:], [value // 10 for value in mixed[12:]]))
    write("test_batch", batch(TEST_PICTURES, list(range(10))))
    write("batches.meta", {"label_names": CIFAR_CLASSES, "num_cases_per_batch": 12, "num_vis": 3072})
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in ("data_batch_1", "data_batch_2")])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    return folder.parent


@pytest.mark.parametrize("grey", ["tensorflow", "pil"])
@pytest.mark.parametrize("layout", ["folders", "pickles"])
def test_image(layout, grey, tmp_path, prepare, monkeypatch):
    raw = tmp_path / "raw"
    source = write_class_folders(raw) if layout == "folders" else write_pickles(raw, monkeypatch)
    data = prepare(Image, source, batch_size=20, dev_size=10, grey=grey)
    seen = []
    for split, copies in (("train", 2), ("dev", 1)):
        batch = read(data, split)
        values = [row[0] for row in batch.tokens]
        assert_pictures(batch, [grey_row(value, grey) for value in values], [value // 10 for value in values])
        assert sorted(batch.label) == sorted(list(range(10)) * copies)
        seen += values
    assert sorted(seen) == TRAIN_PICTURES
    test = read(data, "test")
    values = [row[0] for row in test.tokens]
    assert sorted(values) == TEST_PICTURES
    assert_pictures(test, [grey_row(value, grey) for value in values], [value - 200 for value in values])


def test_image_is_grey_by_tensorflow_unless_told(tmp_path, prepare):
    data = prepare(Image, write_class_folders(tmp_path / "raw"), batch_size=20, dev_size=10)
    assert read(data, "test").tokens == [grey_row(value) for value in TEST_PICTURES]
    assert len(set(data.example_names("train") + data.example_names("dev") + data.example_names("test"))) == 40


@pytest.mark.parametrize("grey", ["tensorflow", "pil"])
def test_image_reads_jpeg_and_grey_files(grey, tmp_path, prepare):
    """Mid-grey is what JPEG keeps as it is."""
    folder = write_class_folders(tmp_path / "raw")
    save_picture(folder / "test/truck/300.jpg", np.full((32, 32, 3), 128, dtype=np.uint8))
    save_picture(folder / "test/airplane/301.png", np.arange(1024, dtype=np.uint16).astype(np.uint8).reshape(32, 32))
    data = prepare(Image, folder, batch_size=20, dev_size=10, grey=grey)
    test = read(data, "test")
    rows = list(zip(test.tokens, test.label, strict=True))
    assert len(rows) == 12
    assert ([128] * 1024, 9) in rows
    assert (list(range(256)) * 4, 0) in rows


def test_image_without_black_pixels(tmp_path, prepare):
    """A pixel of (0, 0, 3) weighs 0.34: it is black as well."""
    folder = write_class_folders(tmp_path / "raw")
    picture = np.zeros((32, 32, 3), dtype=np.uint8)
    picture[0, 1], picture[2, 0], picture[31, 31] = (5, 5, 5), (0, 255, 0), (0, 0, 3)
    for name, value in zip(CIFAR_CLASSES, TEST_PICTURES, strict=True):
        save_picture(folder / "test" / name / f"{value}.png", picture)
    data = prepare(Image, folder, batch_size=20, dev_size=10, protocol=Protocol(zero_is_padding=True))
    test = read(data, "test")
    assert test.tokens == padded([[5, 149]] * 10, 32)
    assert test.position == padded([[1, 64]] * 10, 32)
    assert test.mask == masks([2] * 10, 32)
    train = read(data, "train")
    assert train.tokens == [grey_row(row[0]) for row in train.tokens], "none of these has a black pixel"
    assert train.position == [list(range(1024))] * 20
    assert train.mask == masks([1024] * 20, 1024)


# Retrieval: label, names, and each text's bytes and tokens.
PAIRS = {
    "train": [
        (b"1.0", "C00-1007 P05-1022", b"ab", [98, 99], b"c" * 33, [100] * 33),
        (b"0.0", "W02 D07", b'"a', [35, 98], b'b "" c"', [99, 33, 35, 35, 33, 100, 35]),
        (b"0.0", "10 9", b"\xff\x00\\n", [256, 1, 93, 111], b" a ", [33, 98, 33]),
        (b"1.0", "2 2", b"\xc3\xa9", [196, 170], b"'", [40]),
    ],
    "eval": [
        (b"1.0", "3 4", b"A", [66], b"Z", [91]),
        (b"0.0", "4 3", b"x" * 32, [121] * 32, b"~", [127]),
    ],
    "test": [
        (b"0.0", "5 6", b"0.0", [49, 47, 49], b"1", [50]),
        (b"1.0", "7 8", b"\x01", [2], b"y" * 4001, [122] * 4000),
        (b"1.0", "1 8", b"y" * 4000, [122] * 4000, b"k", [108]),
    ],
}


def write_pairs(folder):
    folder.mkdir(parents=True)
    for split, pairs in PAIRS.items():
        lines = [
            b"\t".join([label, *names.encode().split(), first, second]) for label, names, first, _, second, _ in pairs
        ]
        ending = b"" if split == "eval" else b"\n"
        (folder / f"new_aan_pairs.{split}.tsv").write_bytes(b"\n".join(lines) + ending)


def assert_pairs(data, split, rows, names, labels, width):
    batch = read(data, split)
    assert batch.tokens == [padded(pair, width) for pair in rows]
    assert batch.mask == [masks(map(len, pair), width) for pair in rows]
    assert batch.label == labels
    assert batch.position is None
    assert data.example_names(split) == names


def assert_all_pairs(data):
    for split, file, width in (("train", "train", 64), ("dev", "eval", 32), ("test", "test", 4000)):
        rows = [[first, second] for _, _, _, first, _, second in PAIRS[file]]
        names = [pair[1] for pair in PAIRS[file]]
        labels = {"train": [1, 0, 0, 1], "dev": [1, 0], "test": [0, 1, 1]}[split]
        assert_pairs(data, split, rows, names, labels, width)


@pytest.mark.parametrize("folder", ["", "tsv_data", "lra_release/lra_release/tsv_data"])
def test_retrieval(folder, tmp_path, prepare):
    write_pairs(tmp_path / "raw" / folder)
    assert_all_pairs(prepare(Retrieval, tmp_path / "raw", batch_size=4))


@pytest.mark.parametrize("folder", ["", "tsv_data", "lra_release/lra_release/tsv_data"])
def test_retrieval_without_a_source_looks_beside_the_prepared_data(folder, tmp_path, prepare):
    write_pairs(tmp_path / "data/lra_release" / folder)
    assert_all_pairs(prepare(Retrieval, None, batch_size=4))


@pytest.mark.parametrize(
    "settings", [{"max_bytes": 3}, {"protocol": Protocol(document_bytes=3)}], ids=["max_bytes", "document_bytes"]
)
def test_retrieval_is_cut(settings, tmp_path, prepare):
    write_pairs(tmp_path / "raw")
    data = prepare(Retrieval, tmp_path / "raw", batch_size=4, **settings)
    rows = [[[98, 99], [100] * 3], [[35, 98], [99, 33, 35]], [[256, 1, 93], [33, 98, 33]], [[196, 170], [40]]]
    assert_pairs(data, "train", rows, [pair[1] for pair in PAIRS["train"]], [1, 0, 0, 1], 32)


def test_retrieval_padded_to_its_longest(tmp_path, prepare):
    write_pairs(tmp_path / "raw")
    protocol = Protocol(pad_to_max_length=True)
    data = prepare(Retrieval, tmp_path / "raw", batch_size=4, max_bytes=100, protocol=protocol)
    assert data.max_length == 128
    assert_pairs(data, "dev", [[[66], [91]], [[121] * 32, [127]]], ["3 4", "4 3"], [1, 0], 128)


# ListOps: source, label, and tokens with and without closing brackets.
EXPRESSIONS = {
    "train": [
        ("( ( ( [MAX 4 ) 2 ) ] )", 4, [12, 5, 3, 15], [12, 5, 3]),
        (
            "( ( ( ( [MIN 1 ) ( ( ( [SM 9 ) 8 ) ] ) ) 0 ) ] )",
            0,
            [11, 2, 14, 10, 9, 15, 1, 15],
            [11, 2, 14, 10, 9, 1],
        ),
        ("( ( ( ( [MED 3 ) 7 ) 5 ) ] )", 5, [13, 4, 8, 6, 15], [13, 4, 8, 6]),
    ],
    "val": [
        ("( ( ( [SM 6 ) 6 ) ] )", 2, [14, 7, 7, 15], [14, 7, 7]),
        (
            "( ( ( [MAX ( ( ( [MIN 9 ) 8 ) ] ) ) ( ( ( [MAX 1 ) 3 ) ] ) ) ] )",
            8,
            [12, 11, 10, 9, 15, 12, 2, 4, 15, 15],
            [12, 11, 10, 9, 12, 2, 4],
        ),
    ],
    "test": [
        ("( ( ( [MIN 0 ) 9 ) ] )", 0, [11, 1, 10, 15], [11, 1, 10]),
        ("( " * 33 + "[SM" + " 1 )" * 32 + " ] )", 2, [14, *[2] * 32, 15], [14, *[2] * 32]),
    ],
}


def write_expressions(folder):
    folder.mkdir(parents=True)
    for split, rows in EXPRESSIONS.items():
        lines = ["Source\tTarget", *(f"{source}\t{label}" for source, label, _, _ in rows)]
        (folder / f"basic_{split}.tsv").write_bytes("".join(f"{line}\r\n" for line in lines).encode())


@pytest.mark.parametrize("brackets", [True, False])
@pytest.mark.parametrize("folder", ["", "listops-1000", "lra_release/lra_release/listops-1000"])
def test_listops_of_the_release(folder, brackets, tmp_path, prepare):
    write_expressions(tmp_path / "raw" / folder)
    data = prepare(ListOps, tmp_path / "raw", batch_size=3, protocol=Protocol(brackets=brackets))
    for split, file, labels in (("train", "train", [4, 0, 5]), ("dev", "val", [2, 8]), ("test", "test", [0, 2])):
        rows = [with_them if brackets else without for _, _, with_them, without in EXPRESSIONS[file]]
        assert_sequences(read(data, split), rows, labels, 64 if split == "test" else 32)


# Pathfinder: sample i is of value i but for two pixels; the odd ones are connected. In the order of the metadata, which
# names the last sample of each file first.
SAMPLES = [*range(6, -1, -1), *range(13, 6, -1), *range(24, 13, -1)]


def folder_number(sample):
    """The 10 is after the 2."""
    return 1 if sample < 7 else 2 if sample < 14 else 10


def sample_name(sample):
    return f"imgs/{folder_number(sample)}/sample_{sample}.png"


def sample_row(sample, resolution=32):
    return [sample] * (resolution - 1) + [200 + sample, 100 + sample] + [sample] * (resolution**2 - resolution - 1)


def sample_picture(sample, resolution=32):
    picture = np.full((resolution, resolution), sample, dtype=np.uint8)
    picture[0, -1], picture[1, 0] = 200 + sample, 100 + sample
    return picture


def write_samples(folder, pictures, kind="text"):
    (folder / "metadata").mkdir(parents=True)
    rows = {}
    for sample, picture in pictures.items():
        save_picture(folder / sample_name(sample), picture)
        number = folder_number(sample)
        row = [f"imgs/{number}", f"sample_{sample}.png", str(sample), str(sample % 2), "1.8", "6", "2.0", "5"]
        rows.setdefault(number, []).append(row)
    for number, lines in rows.items():
        path = folder / f"metadata/{number}.npy"
        if kind == "text":
            path.write_text("".join(" ".join(row) + "\n" for row in lines))
        else:
            np.save(path, np.array(lines))


def assert_samples(data, expected, resolution=32):
    for split, samples in expected.items():
        assert data.example_names(split) == [sample_name(sample) for sample in samples]
        rows = [sample_row(sample, resolution) for sample in samples]
        assert_pictures(read(data, split), rows, [sample % 2 for sample in samples])


@pytest.mark.parametrize("kind", ["text", "array"])
@pytest.mark.parametrize("folder", ["", "pathfinder32", "lra_release/lra_release/pathfinder32"])
def test_pathfinder_of_the_release(folder, kind, tmp_path, prepare):
    pictures = {sample: sample_picture(sample) for sample in SAMPLES[:20]}
    write_samples(tmp_path / "raw" / folder / "curv_contour_length_14", pictures, kind)
    data = prepare(Pathfinder, tmp_path / "raw", batch_size=16, split="lra")
    assert SAMPLES[14:20] == [24, 23, 22, 21, 20, 19]
    train = [6, 5, 4, 3, 2, 1, 0, 13, 12, 11, 10, 9, 8, 7, 24, 23]
    assert_samples(data, {"train": train, "dev": [22, 21], "test": [20, 19]})


@pytest.mark.parametrize(
    ("level", "folder"),
    [("easy", "curv_baseline"), ("intermediate", "curv_contour_length_9"), ("hard", "curv_contour_length_14")],
)
def test_pathfinder_levels_of_the_release(level, folder, tmp_path, prepare):
    """Each level's labels and pictures from its own folder."""
    names = ["curv_baseline", "curv_contour_length_9", "curv_contour_length_14"]
    for value, name in zip((0, 10, 20), names, strict=True):
        write_samples(tmp_path / "raw" / name, {sample: sample_picture(sample + value) for sample in range(10)})
    data = prepare(Pathfinder, tmp_path / "raw", batch_size=8, split="lra", level=level)
    assert_pictures(read(data, "test"), [sample_row(9 + 10 * names.index(folder))], [1])


def test_pathfinder_split_at_random(tmp_path, prepare):
    """As the S4 code does it; an epoch's order is another matter."""
    pictures = {sample: sample_picture(sample) for sample in SAMPLES}
    write_samples(tmp_path / "raw/curv_contour_length_14", pictures)
    data = prepare(Pathfinder, tmp_path / "raw", batch_size=21, split="s4")
    parts = random_split(SAMPLES, [21, 2, 2], generator=torch.Generator().manual_seed(42))
    for split, part in zip(("train", "dev", "test"), parts, strict=True):
        assert sorted(data.example_names(split)) == sorted(sample_name(sample) for sample in part)
        rows = {sample_name(sample): (sample_row(sample), sample % 2) for sample in part}
        expected = [rows[name] for name in data.example_names(split)]
        assert_pictures(read(data, split), [row for row, _ in expected], [label for _, label in expected])


def test_pathfinder_without_black_pixels(tmp_path, prepare):
    pictures = {sample: np.zeros((32, 32), dtype=np.uint8) for sample in range(10)}
    pictures[1][0, 5], pictures[1][31, 31] = 7, 255
    pictures[2].reshape(-1)[100:133] = 9
    pictures[9][1] = range(1, 33)
    write_samples(tmp_path / "raw/curv_contour_length_14", pictures)
    protocol = Protocol(zero_is_padding=True)
    data = prepare(Pathfinder, tmp_path / "raw", batch_size=8, split="lra", protocol=protocol)
    train = read(data, "train")
    assert train.tokens == padded([[], [7, 255], [9] * 33, *[[]] * 5], 64)
    assert train.position == padded([[], [5, 1023], list(range(100, 133)), *[[]] * 5], 64)
    assert train.mask == masks([0, 2, 33, 0, 0, 0, 0, 0], 64)
    assert train.label == [0, 1] * 4
    dev = read(data, "dev")
    assert (dev.tokens, dev.position, dev.mask, dev.label) == ([[0] * 32], [[0] * 32], [[False] * 32], [0])
    test = read(data, "test")
    assert test.tokens == [list(range(1, 33))]
    assert test.position == [list(range(32, 64))]
    assert (test.mask, test.label) == ([[True] * 32], [1])


@pytest.mark.parametrize("kind", ["text", "array"])
@pytest.mark.parametrize("folder", ["", "pathfinder128"])
def test_pathx_of_the_release(folder, kind, tmp_path, prepare):
    pictures = {sample: sample_picture(sample, 128) for sample in range(10)}
    write_samples(tmp_path / "raw" / folder / "curv_contour_length_14", pictures, kind)
    data = prepare(PathX, tmp_path / "raw", batch_size=8, split="lra")
    assert_samples(data, {"train": list(range(8)), "dev": [8], "test": [9]}, 128)


def test_pathx_drawn(prepare):
    data = prepare(PathX, None, batch_size=4, train_size=4, dev_size=2, test_size=3)
    for split, size in (("train", 4), ("dev", 2), ("test", 3)):
        batch = read(data, split)
        assert [len(row) for row in batch.tokens] == [16_384] * size
        assert {(min(row), max(row)) for row in batch.tokens} == {(0, 255)}
        assert batch.mask is None
        assert batch.position is None
        assert set(batch.label) <= {0, 1}
