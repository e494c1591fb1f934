"""Image, from raw files to batches: every token, mask and label beside the value worked out by hand."""

import hashlib
import pickle

import numpy as np
import pytest
from task_batches import assert_pictures, masks, padded, read, save_picture
from torchvision.datasets import CIFAR10

from datamodules import Image

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
    data = prepare(Image, source, batch_size=20, val_size=10, grey=grey, drop_black=False)
    seen = []
    for split, copies in (("train", 2), ("val", 1)):
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
    data = prepare(Image, write_class_folders(tmp_path / "raw"), batch_size=20, val_size=10, drop_black=False)
    assert read(data, "test").tokens == [grey_row(value) for value in TEST_PICTURES]
    assert len(set(data.example_names("train") + data.example_names("val") + data.example_names("test"))) == 40


@pytest.mark.parametrize("grey", ["tensorflow", "pil"])
def test_image_reads_jpeg_and_grey_files(grey, tmp_path, prepare):
    """Mid-grey is what JPEG keeps as it is."""
    folder = write_class_folders(tmp_path / "raw")
    save_picture(folder / "test/truck/300.jpg", np.full((32, 32, 3), 128, dtype=np.uint8))
    save_picture(folder / "test/airplane/301.png", np.arange(1024, dtype=np.uint16).astype(np.uint8).reshape(32, 32))
    data = prepare(Image, folder, batch_size=20, val_size=10, grey=grey, drop_black=False)
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
    data = prepare(Image, folder, batch_size=20, val_size=10)
    test = read(data, "test")
    assert test.tokens == padded([[5, 149]] * 10, 32)
    assert test.position == padded([[1, 64]] * 10, 32)
    assert test.mask == masks([2] * 10, 32)
    train = read(data, "train")
    assert train.tokens == [grey_row(row[0]) for row in train.tokens], "none of these has a black pixel"
    assert train.position == [list(range(1024))] * 20
    assert train.mask == masks([1024] * 20, 1024)
