"""Retrieval, from raw files to batches: every token, mask and label beside the value worked out by hand."""

import pytest
from task_batches import masks, padded, read

from datamodules import Protocol, Retrieval

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
    for split, file, width in (("train", "train", 64), ("val", "eval", 32), ("test", "test", 4000)):
        rows = [[first, second] for _, _, _, first, _, second in PAIRS[file]]
        names = [pair[1] for pair in PAIRS[file]]
        labels = {"train": [1, 0, 0, 1], "val": [1, 0], "test": [0, 1, 1]}[split]
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
    assert_pairs(data, "val", [[[66], [91]], [[121] * 32, [127]]], ["3 4", "4 3"], [1, 0], 128)
