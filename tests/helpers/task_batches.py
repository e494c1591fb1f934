"""What the tests of each task, from raw files to batches, share."""

import torch
from PIL import Image as PillowImage


def loader_of(data, split):
    return {"train": data.train_dataloader, "val": data.val_dataloader, "test": data.test_dataloader}[split]()


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


def save_picture(path, picture, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    PillowImage.fromarray(picture).save(path, **settings)
