"""What every task says of itself; and ListOps of the release, token by token."""

import pytest
from task_batches import assert_sequences, read

from datamodules import Image, ListOps, Pathfinder, PathX, Protocol, Retrieval, ReviewPairs, Text

TASKS = [Text, Image, Retrieval, ReviewPairs, ListOps, Pathfinder, PathX]


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
    for split, file, labels in (("train", "train", [4, 0, 5]), ("val", "val", [2, 8]), ("test", "test", [0, 2])):
        rows = [with_them if brackets else without for _, _, with_them, without in EXPRESSIONS[file]]
        assert_sequences(read(data, split), rows, labels, 64 if split == "test" else 32)
