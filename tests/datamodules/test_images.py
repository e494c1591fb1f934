"""Views of images, black pixels left out, and the random choice of a view."""

import numpy as np
import pytest
import torch

from datamodules import Image, ListOps, Pathfinder, PathX, Protocol, Retrieval, Text
from datamodules.augmentation import MAX_SHIFT, NUM_VIEWS, num_views, pixel_sources
from datamodules.batches import TrainBatches
from datamodules.image_batches import ImageBatches
from datamodules.prepared.split import Split

PICTURE = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=np.uint8)
# Written down by hand, by the number of the view of [transpose, flip_horizontal].
VIEWS = [
    [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
    [[1, 4, 7], [2, 5, 8], [3, 6, 9]],
    [[3, 2, 1], [6, 5, 4], [9, 8, 7]],
    [[3, 6, 9], [2, 5, 8], [1, 4, 7]],
]


def images(*pictures: np.ndarray, drop_black: bool, augmentations: tuple[str, ...] = ()) -> ImageBatches:
    pixels = np.concatenate([picture.ravel() for picture in pictures])
    offsets = np.arange(len(pictures) + 1) * pictures[0].size
    split = Split(pixels, offsets, np.arange(len(pictures), dtype=np.uint8))
    return ImageBatches(split, drop_black, augmentations, pad_multiple=1)


def view_of(picture: np.ndarray, name: str, number: int) -> np.ndarray:
    sources = pixel_sources(torch.tensor([number]), [name], len(picture))[0].numpy()
    return picture.ravel()[sources].reshape(picture.shape)


def test_views_are_numbered_through_all_augmentations():
    other = PICTURE + 10
    data = images(PICTURE, other, drop_black=False, augmentations=("transpose", "flip_horizontal"))
    batch = data.__getitems__([0, 2, 4, 6, 1, 5])
    assert num_views(data.augmentations) == 4
    assert batch.tokens.reshape(-1, 3, 3).tolist() == [*VIEWS, other.tolist(), np.fliplr(other).tolist()]
    assert batch.example.tolist() == batch.label.tolist() == [0] * 4 + [1, 1]


def test_single_views():
    assert num_views(()) == 1
    assert view_of(PICTURE, "flip_vertical", 1).tolist() == np.flipud(PICTURE).tolist()
    big = np.arange(32 * 32).reshape(32, 32)
    for name in ("transpose", "flip_horizontal", "flip_vertical", "crop"):
        assert np.array_equal(view_of(big, name, 0), big)


def test_shift_moves_by_every_step_and_repeats_the_edge():
    big, seen = np.arange(1024).reshape(32, 32), set()
    padded = np.pad(big, MAX_SHIFT, mode="edge")
    for number in range(NUM_VIEWS["shift"]):
        down, right = divmod(number, 9)
        shifted = view_of(big, "shift", number)
        assert np.array_equal(shifted, padded[down : down + 32, right : right + 32])
        seen.add(shifted.tobytes())
    assert len(seen) == 81


def test_crop_is_a_square_of_at_least_24_pixels_enlarged():
    big = np.arange(1024).reshape(32, 32)
    for number in (0, 81 * 8, 81 * 8 + 80, 81 * 3 + 9 * 8 + 4, 728):
        cut, top, left = number // 81, number // 9 % 9 * (number // 81) // 8, number % 9 * (number // 81) // 8
        crop = view_of(big, "crop", number)
        square = big[top : top + 32 - cut, left : left + 32 - cut]
        assert set(crop.ravel()) == set(square.ravel()), "each of its pixels, and no other"
        nearest = np.floor((np.arange(32) + 0.5) * (32 - cut) / 32).astype(int)
        assert np.array_equal(crop, square[np.ix_(nearest, nearest)])
    assert view_of(big, "crop", 728).max() == 1023


def test_positions_are_those_of_the_turned_pixels():
    picture = np.zeros((3, 3), dtype=np.uint8)
    picture[0, 2], picture[1, 0] = 7, 9
    batch = images(picture, drop_black=True, augmentations=("transpose", "flip_horizontal")).__getitems__([0, 1, 2])
    assert batch.position.tolist() == [[2, 3], [1, 6], [0, 5]]
    assert batch.tokens.tolist() == [[7, 9], [9, 7], [7, 9]]


def test_shifted_image_may_have_more_tokens_than_any_image_of_the_split():
    picture = np.zeros((5, 5), dtype=np.uint8)
    picture[:, 0] = 3
    data = images(picture, drop_black=True, augmentations=("shift",))
    batch = data.__getitems__([4, 0])
    assert batch.tokens.shape == (2, 25)
    assert batch.mask.sum(dim=1).tolist() == [5, 25], "the edge is repeated"


def test_black_image_is_one_black_token():
    black = images(PICTURE, np.zeros_like(PICTURE), drop_black=True, augmentations=("transpose",))
    batch = black.__getitems__([1, 3])
    assert batch.tokens.tolist() == batch.position.tolist() == [[0], [0]]
    assert batch.mask.all()


def test_view_is_a_function_of_seed_epoch_and_example():
    lengths = np.random.default_rng(0).integers(100, 500, 1000)

    def views(seed: int, epoch: int, batch_size: int = 8) -> dict[int, int]:
        items = TrainBatches(lengths, batch_size, seed, views=3).order(epoch).ravel()
        return {item % 1000: item // 1000 for item in items}

    first = views(0, 0)
    assert first == views(0, 0, batch_size=125), "the batch size does not matter"
    assert len(first) == 1000
    assert all(280 < list(first.values()).count(view) < 390 for view in range(3))
    for other in (views(0, 1), views(1, 0)):
        assert 0.5 < np.mean([other[example] != view for example, view in first.items()]) < 0.8


def test_views_are_shared_by_the_ranks():
    lengths = np.full(64, 4)
    alone = TrainBatches(lengths, 8, 0, views=2).order(2)
    pair = [TrainBatches(lengths, 4, 0, rank, 2, views=2).order(2) for rank in range(2)]
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


def test_true_is_the_first_augmentation():
    assert Pathfinder(augment=True).chosen_augmentations == PathX(augment=True).chosen_augmentations == ("transpose",)
    assert Image(augment=True).chosen_augmentations == ("flip_horizontal",)
    assert ListOps(augment=True).chosen_augmentations == ("permute",)
    assert Image(augment=["crop", "shift"]).chosen_augmentations == ("shift", "crop"), "in the task's order"
    assert Image(augment=[]).chosen_augmentations == Image().chosen_augmentations == ()


@pytest.mark.parametrize(
    ("task", "settings", "said"),
    [
        (
            Text,
            {"augment": True},
            r"Text has no augmentation that keeps its labels \(got data.augment=true\)\. Fix: data",
        ),
        (Retrieval, {"augment": ["permute"]}, r"Retrieval has no augmentation .* data.augment=\[permute\]"),
        (
            Pathfinder,
            {"augment": ["crop"]},
            r"crop is not a label-preserving augmentation for Pathfinder .*any of transpose, flip_",
        ),
        (Image, {"augment": ["shift", "transpose"]}, r"transpose is .* Fix: name any of flip_horizontal, shift, crop"),
        (
            ListOps,
            {"augment": True, "protocol": Protocol(brackets=False)},
            r"brackets=false\)\. Fix: data.augment=false",
        ),
    ],
)
def test_augmentation_that_would_break_a_task_is_refused(task, settings, said):
    with pytest.raises(ValueError, match=said):
        task(**settings)
