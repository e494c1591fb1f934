"""Views of images, black pixels left out, and the random choice of a view."""

import numpy as np
import pytest
import torch

from datamodules import Image, ListOps, Pathfinder, Retrieval, Text
from datamodules.batches import TrainBatches
from datamodules.image_batches import FLIP, NUM_SYMMETRIES, TRANSPOSE, ImageBatches, symmetries
from datamodules.prepared.split import Split

PICTURE = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=np.uint8)
# Written down by hand: the picture, its quarter turns against the clock, and the same four flipped left to right.
VIEWS = [
    [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
    [[3, 6, 9], [2, 5, 8], [1, 4, 7]],
    [[9, 8, 7], [6, 5, 4], [3, 2, 1]],
    [[7, 4, 1], [8, 5, 2], [9, 6, 3]],
    [[3, 2, 1], [6, 5, 4], [9, 8, 7]],
    [[9, 6, 3], [8, 5, 2], [7, 4, 1]],
    [[7, 8, 9], [4, 5, 6], [1, 2, 3]],
    [[1, 4, 7], [2, 5, 8], [3, 6, 9]],
]


def images(*pictures: np.ndarray, drop_black: bool) -> ImageBatches:
    pixels = np.concatenate([picture.ravel() for picture in pictures])
    offsets = np.arange(len(pictures) + 1) * pictures[0].size
    return ImageBatches(Split(pixels, offsets, np.arange(len(pictures), dtype=np.uint8)), drop_black, pad_multiple=1)


def test_symmetries_of_a_square():
    assert PICTURE.ravel()[symmetries(3)].reshape(-1, 3, 3).tolist() == VIEWS
    assert VIEWS[FLIP] == np.fliplr(PICTURE).tolist()
    assert VIEWS[TRANSPOSE] == PICTURE.T.tolist()


def test_items_of_a_batch_are_views_of_examples():
    other = PICTURE + 10
    batch = images(PICTURE, other, drop_black=False).__getitems__([view * 2 for view in range(NUM_SYMMETRIES)] + [1, 9])
    assert batch.tokens.reshape(-1, 3, 3).tolist() == [*VIEWS, other.tolist(), np.fliplr(other).tolist()]
    assert batch.example.tolist() == [0] * NUM_SYMMETRIES + [1, 1]
    assert batch.label.tolist() == [0] * NUM_SYMMETRIES + [1, 1]


def test_positions_are_those_of_the_turned_pixels():
    picture = np.zeros((3, 3), dtype=np.uint8)
    picture[0, 2], picture[1, 0] = 7, 9
    batch = images(picture, drop_black=True).__getitems__([0, 1, FLIP])
    assert batch.position.tolist() == [[2, 3], [0, 7], [0, 5]]
    assert batch.tokens.tolist() == [[7, 9], [7, 9], [7, 9]]


def test_black_image_is_one_black_token():
    batch = images(PICTURE, np.zeros_like(PICTURE), drop_black=True).__getitems__([1, 3])
    assert batch.tokens.tolist() == batch.position.tolist() == [[0], [0]]
    assert batch.mask.all()


def test_view_is_a_function_of_seed_epoch_and_example():
    lengths = np.random.default_rng(0).integers(100, 500, 1000)

    def views(seed: int, epoch: int, batch_size: int = 8) -> dict[int, int]:
        items = TrainBatches(lengths, batch_size, seed, views=(0, 3, 5)).order(epoch).ravel()
        return {item % 1000: item // 1000 for item in items}

    first = views(0, 0)
    assert first == views(0, 0, batch_size=125), "the batch size does not matter"
    assert len(first) == 1000
    assert all(280 < list(first.values()).count(view) < 390 for view in (0, 3, 5))
    for other in (views(0, 1), views(1, 0)):
        assert 0.5 < np.mean([other[example] != view for example, view in first.items()]) < 0.8


def test_views_are_shared_by_the_ranks():
    lengths = np.full(64, 4)
    alone = TrainBatches(lengths, 8, 0, views=(0, FLIP)).order(2)
    pair = [TrainBatches(lengths, 4, 0, rank, 2, views=(0, FLIP)).order(2) for rank in range(2)]
    assert all(set(whole) == {*one, *other} for whole, one, other in zip(alone, *pair, strict=True))


def test_augmented_training_images_are_views_of_the_drawn_ones(tmp_path):
    sizes = {"train_size": 16, "val_size": 4, "test_size": 4}
    plain, augmented = (
        Pathfinder(data_dir=str(tmp_path), batch_size=16, drop_black=False, augment=augment, **sizes)
        for augment in (False, True)
    )
    for data in (plain, augmented):
        data.prepare_data()
        data.setup("fit")
    (whole,), (viewed,) = plain.train_dataloader(), augmented.train_dataloader()
    assert torch.equal(whole.example, viewed.example)
    transposed = 0
    for image, other in zip(whole.tokens.reshape(-1, 32, 32), viewed.tokens.reshape(-1, 32, 32), strict=True):
        assert torch.equal(other, image) or torch.equal(other, image.T)
        transposed += torch.equal(other, image.T)
    assert 2 < transposed < 14
    (val,) = augmented.val_dataloader()
    assert torch.equal(val.tokens, next(iter(plain.val_dataloader())).tokens), "evaluation sees the images as they are"


@pytest.mark.parametrize("task", [ListOps, Text, Retrieval])
def test_task_without_augmentation_refuses_it(task):
    with pytest.raises(ValueError, match=r"data\.augment=true: \w+ has no augmentation\. Fix: data\.augment=false"):
        task(augment=True)


def test_image_flips_left_to_right_only():
    assert Image.views == (0, FLIP)
