"""Pathfinder and Path-X of the release, from raw files to batches: every token beside the value worked out by hand."""

import numpy as np
import pytest
import torch
from task_batches import assert_pictures, masks, padded, read, save_picture
from torch.utils.data import random_split

from datamodules import Pathfinder, PathX

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
    data = prepare(Pathfinder, tmp_path / "raw", batch_size=16, split="lra", drop_black=False)
    assert SAMPLES[14:20] == [24, 23, 22, 21, 20, 19]
    train = [6, 5, 4, 3, 2, 1, 0, 13, 12, 11, 10, 9, 8, 7, 24, 23]
    assert_samples(data, {"train": train, "val": [22, 21], "test": [20, 19]})


@pytest.mark.parametrize(
    ("level", "folder"),
    [("easy", "curv_baseline"), ("intermediate", "curv_contour_length_9"), ("hard", "curv_contour_length_14")],
)
def test_pathfinder_levels_of_the_release(level, folder, tmp_path, prepare):
    """Each level's labels and pictures from its own folder."""
    names = ["curv_baseline", "curv_contour_length_9", "curv_contour_length_14"]
    for value, name in zip((0, 10, 20), names, strict=True):
        write_samples(tmp_path / "raw" / name, {sample: sample_picture(sample + value) for sample in range(10)})
    data = prepare(Pathfinder, tmp_path / "raw", batch_size=8, split="lra", level=level, drop_black=False)
    assert_pictures(read(data, "test"), [sample_row(9 + 10 * names.index(folder))], [1])


def test_pathfinder_split_at_random(tmp_path, prepare):
    """As the S4 code does it; an epoch's order is another matter."""
    pictures = {sample: sample_picture(sample) for sample in SAMPLES}
    write_samples(tmp_path / "raw/curv_contour_length_14", pictures)
    data = prepare(Pathfinder, tmp_path / "raw", batch_size=21, split="s4", drop_black=False)
    parts = random_split(SAMPLES, [21, 2, 2], generator=torch.Generator().manual_seed(42))
    for split, part in zip(("train", "val", "test"), parts, strict=True):
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
    data = prepare(Pathfinder, tmp_path / "raw", batch_size=8, split="lra")
    train = read(data, "train")
    assert train.tokens == padded([[], [7, 255], [9] * 33, *[[]] * 5], 64)
    assert train.position == padded([[], [5, 1023], list(range(100, 133)), *[[]] * 5], 64)
    assert train.mask == masks([1, 2, 33, 1, 1, 1, 1, 1], 64), "an image of black pixels only keeps its first"
    assert train.label == [0, 1] * 4
    val = read(data, "val")
    assert (val.tokens, val.position, val.mask, val.label) == ([[0] * 32], [[0] * 32], masks([1], 32), [0])
    test = read(data, "test")
    assert test.tokens == [list(range(1, 33))]
    assert test.position == [list(range(32, 64))]
    assert (test.mask, test.label) == ([[True] * 32], [1])


@pytest.mark.parametrize("kind", ["text", "array"])
@pytest.mark.parametrize("folder", ["", "pathfinder128"])
def test_pathx_of_the_release(folder, kind, tmp_path, prepare):
    pictures = {sample: sample_picture(sample, 128) for sample in range(10)}
    write_samples(tmp_path / "raw" / folder / "curv_contour_length_14", pictures, kind)
    data = prepare(PathX, tmp_path / "raw", batch_size=8, split="lra", drop_black=False)
    assert_samples(data, {"train": list(range(8)), "val": [8], "test": [9]}, 128)


def test_pathx_drawn(prepare):
    data = prepare(PathX, None, batch_size=4, train_size=4, val_size=2, test_size=3, drop_black=False)
    for split, size in (("train", 4), ("val", 2), ("test", 3)):
        batch = read(data, split)
        assert [len(row) for row in batch.tokens] == [16_384] * size
        assert {(min(row), max(row)) for row in batch.tokens} == {(0, 255)}
        assert batch.mask is None
        assert batch.position is None
        assert set(batch.label) <= {0, 1}
