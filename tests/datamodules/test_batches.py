"""Which examples make up which batch, on which process, in which order; and how a batch looks."""

import numpy as np
import pytest
import torch

from datamodules.batches import EvalBatches, TrainBatches
from datamodules.collate import SplitBatches
from datamodules.image_batches import ImageBatches
from datamodules.prepared.split import Split


@pytest.fixture(scope="module")
def lengths() -> np.ndarray:
    """Lengths spread as widely as those of ListOps."""
    return np.random.default_rng(0).normal(1040, 392, size=10_000).clip(501, 1999).astype(np.int64)


def split_of(lengths: list[int]) -> Split:
    """Example i is 10 i + 1, 10 i + 2, ..., so that each token tells where it comes from."""
    tokens = [10 * example + np.arange(1, length + 1) for example, length in enumerate(lengths)]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    labels = np.arange(len(lengths), dtype=np.uint8) + 3
    return Split(np.concatenate(tokens).astype(np.uint8), offsets, labels)


def padding_share(batches: list[list[int]], lengths: np.ndarray) -> float:
    real = sum(lengths[batch].sum() for batch in batches)
    return 1 - real / sum(lengths[batch].max() * len(batch) for batch in batches)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("kind", ["spread", "equal"])
def test_epoch_gives_each_rank_full_batches_of_its_own(kind, world_size, lengths):
    lengths = lengths[:1003] if kind == "spread" else np.full(1003, 1024)
    ranks = [list(TrainBatches(lengths, 8, 0, rank, world_size)) for rank in range(world_size)]
    expected = 1003 // (8 * world_size)
    assert [len(batches) for batches in ranks] == [expected] * world_size
    assert len(TrainBatches(lengths, 8, 0, 0, world_size)) == expected
    assert {len(batch) for batches in ranks for batch in batches} == {8}
    examples = np.concatenate([batch for batches in ranks for batch in batches])
    assert len(np.unique(examples)) == len(examples) == expected * 8 * world_size
    assert examples.min() >= 0
    assert examples.max() < 1003


@pytest.mark.parametrize("kind", ["spread", "equal"])
def test_two_ranks_take_the_steps_of_one_with_twice_the_batch(kind, lengths):
    lengths = lengths if kind == "spread" else np.full(len(lengths), 1024)
    alone = TrainBatches(lengths, 32, 5, place=lambda _: (3, 0))
    pair = [TrainBatches(lengths, 16, 5, rank, 2, place=lambda _: (3, 0)) for rank in range(2)]
    steps = list(zip(alone, *pair, strict=True))
    assert len(steps) == 312
    assert all(set(whole) == set(first) | set(second) for whole, first, second in steps)


def test_ranks_get_batches_of_like_length(lengths):
    """Else one process waits for the other at every step."""
    pair = [TrainBatches(lengths, 16, 0, rank, 2) for rank in range(2)]
    means = np.array([[lengths[batch].mean() for batch in batches] for batches in pair])
    assert abs(means[0] - means[1]).mean() < 10


@pytest.mark.parametrize("kind", ["spread", "equal"])
def test_order_depends_on_seed_and_epoch_alone(kind, lengths):
    lengths = lengths[:500] if kind == "spread" else np.full(500, 1024)

    def order(seed: int, epoch: int, before: int = 0) -> list[list[int]]:
        places = iter([(before, 0), (epoch, 0)])
        batches = TrainBatches(lengths, 8, seed, place=lambda _: next(places))
        list(batches)
        np.random.rand(before)  # nothing else that draws numbers may matter
        torch.manual_seed(before)
        return list(batches)

    assert order(1, 2) == order(1, 2, before=7)
    different = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({str(batches) for batches in different}) == 6
    assert order(0, 1) != order(1, 0)


def test_place_within_an_epoch_continues_exactly(lengths):
    def batches(start: int) -> list[list[int]]:
        return list(TrainBatches(lengths[:500], 8, 0, place=lambda _: (2, start)))

    whole = batches(0)
    assert batches(17) == whole[17:]
    assert batches(len(whole)) == []


def test_every_epoch_leaves_out_other_examples(lengths):
    epochs = iter(range(200))
    batches = TrainBatches(lengths[:103], 8, 0, place=lambda _: (next(epochs), 0))
    left_out = []
    for _ in range(200):
        left_out.append(frozenset(range(103)) - frozenset(np.concatenate(list(batches)).tolist()))
    assert {len(missing) for missing in left_out} == {7}
    assert len(set(left_out)) == 200
    assert len(frozenset.union(*left_out)) == 103, "none is always in: the chance of that is one in 10,000"


def test_batches_hold_examples_of_like_length_in_mixed_order(lengths):
    batches = list(TrainBatches(lengths, 32, 0))
    assert padding_share(batches, lengths) < 0.08
    unsorted = np.random.default_rng(1).permutation(9_984).reshape(-1, 32)
    assert padding_share(list(unsorted), lengths) > 0.3, "what it would be without sorting"
    means = np.array([lengths[batch].mean() for batch in batches])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2, "short and long batches alternate at random"


@pytest.mark.parametrize(("batch_size", "world_size"), [(0, 1), (-1, 1), (11, 1), (6, 2)])
def test_batch_size_that_leaves_no_batch_is_refused(batch_size, world_size):
    with pytest.raises(ValueError, match=f"data.batch_size={batch_size} "):
        TrainBatches(np.arange(1, 11), batch_size, 0, 0, world_size)
    assert len(TrainBatches(np.arange(1, 11), 10, 0)) == 1


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [4, 7, 100])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_evaluation_sees_every_example_once(size, world_size, batch_size, lengths):
    ranks = [EvalBatches(lengths[:size], batch_size, rank, world_size) for rank in range(world_size)]
    batches = [list(rank) for rank in ranks]
    assert len({len(rank) for rank in ranks}) == 1, "a rank with fewer would let the others wait for ever"
    assert [len(rank) for rank in ranks] == [len(rank) for rank in batches]
    sizes = [len(batch) for rank in batches for batch in rank]
    assert min(sizes) > 0
    assert max(sizes) <= batch_size + (size % world_size > 0)
    assert sorted(np.concatenate([batch for rank in batches for batch in rank])) == list(range(size))
    shares = [sum(map(len, rank)) for rank in batches]
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize(("size", "world_size", "num_examples"), [(1, 2, None), (3, 4, None), (31, 1, 0)])
def test_evaluation_without_examples_is_refused(size, world_size, num_examples, lengths):
    with pytest.raises(ValueError, match=r"data\.eval_batch_size=32 leaves"):
        EvalBatches(lengths[:size], 32, 0, world_size, num_examples)


def test_evaluation_puts_like_lengths_together_and_the_shortest_not_first(lengths):
    batches = list(EvalBatches(lengths[:1000], 32))
    assert padding_share(batches, lengths) < 0.08
    means = [lengths[batch].mean() for batch in batches]
    assert np.mean(means[:10]) == pytest.approx(np.mean(means), rel=0.25), "the first batches stand for all"


def test_evaluation_leaves_out_the_rest_where_asked(lengths):
    """The published code cuts the test set to whole batches: 1,003 examples to 992."""
    seen = np.concatenate(list(EvalBatches(lengths[:1003], 32, num_examples=992)))
    assert len(seen) == len(set(seen)) == 992
    assert len(np.concatenate(list(EvalBatches(lengths[:1003], 32)))) == 1003


def test_first_batches_of_a_source_sorted_by_class_hold_every_class():
    batches = list(EvalBatches(np.full(1000, 1024), 50))
    assert {example // 100 for batch in batches[:2] for example in batch} == set(range(10))
    assert batches == [*EvalBatches(np.full(1000, 1024), 50)], "the same every time"


def test_equal_lengths_are_padded_where_asked():
    batch = SplitBatches(split_of([2, 2]), pad_to=4).__getitems__([0, 1])
    assert batch.mask.tolist() == [[True, True, False, False]] * 2


def test_batch_is_padded_to_a_multiple():
    batch = SplitBatches(split_of([3, 1, 5]), pad_multiple=4).__getitems__([2, 0])
    assert batch.tokens.tolist() == [[21, 22, 23, 24, 25, 0, 0, 0], [1, 2, 3, 0, 0, 0, 0, 0]]
    assert batch.mask.tolist() == [[True] * 5 + [False] * 3, [True] * 3 + [False] * 5]
    assert batch.label.tolist() == [5, 3]
    assert batch.example.tolist() == [2, 0]
    assert {batch.tokens.dtype, batch.label.dtype, batch.example.dtype} == {torch.int64}
    assert batch.mask.dtype == torch.bool


@pytest.mark.parametrize(("length", "width"), [(31, 32), (32, 32), (33, 64)])
def test_padding_reaches_the_next_multiple_and_no_further(length, width):
    batch = SplitBatches(split_of([length, 2])).__getitems__([0, 1])
    assert batch.tokens.shape == batch.mask.shape == (2, width)
    assert batch.mask.sum(dim=1).tolist() == [length, 2]


def test_batch_is_padded_to_a_fixed_width_where_asked():
    dataset = SplitBatches(split_of([3, 1, 5]), pad_multiple=4, pad_to=12)
    for indices in ([0, 1], [2]):
        assert dataset.__getitems__(indices).tokens.shape == (len(indices), 12)
    assert dataset[1].tokens.tolist() == [[11] + [0] * 11]
    assert len(dataset) == 3


def test_examples_of_one_length_need_no_mask():
    batch = SplitBatches(split_of([4, 4, 4]), pad_multiple=2).__getitems__([2, 1])
    assert batch.tokens.tolist() == [[21, 22, 23, 24], [11, 12, 13, 14]]
    assert batch.mask is None
    assert batch.tokens.dtype == torch.int64


def test_one_full_batch_of_a_padded_split_has_a_mask():
    """Else a compiled model would be made anew for it."""
    assert SplitBatches(split_of([4, 4, 2]), pad_multiple=2).__getitems__([0, 1]).mask.all()


def test_ids_are_shifted_and_padding_is_not():
    split = split_of([2, 1])
    split.tokens[:] = [255, 0, 7]
    batch = SplitBatches(split, pad_multiple=2, first_id=1).__getitems__([0, 1])
    assert batch.tokens.tolist() == [[256, 1], [8, 0]]


def test_two_documents_an_example():
    """Of lengths 1 and 3, and 2 and 1; the longer one counts for the order."""
    single = split_of([1, 3, 2, 1])
    dataset = SplitBatches(Split(single.tokens, single.offsets, single.labels[:2]), pad_multiple=4)
    assert dataset.lengths.tolist() == [3, 2]
    batch = dataset.__getitems__([1, 0])
    assert batch.tokens.tolist() == [[[21, 22, 0, 0], [31, 0, 0, 0]], [[1, 0, 0, 0], [11, 12, 13, 0]]]
    assert batch.mask.sum(dim=-1).tolist() == [[2, 1], [1, 3]]
    assert batch.label.tolist() == [4, 3]


def test_zeros_are_left_out_and_the_others_keep_their_places():
    split = split_of([4, 4, 4])
    split.tokens[:] = [0, 5, 0, 6, 0, 0, 0, 0, 1, 2, 0, 3]
    dataset = ImageBatches(split, drop_black=True, pad_multiple=4)
    assert dataset.lengths.tolist() == [2, 1, 3]
    batch = dataset.__getitems__([2, 0, 1])
    assert batch.tokens.tolist() == [[1, 2, 3, 0], [5, 6, 0, 0], [0] * 4]
    assert batch.position.tolist() == [[0, 1, 3, 0], [1, 3, 0, 0], [0] * 4]
    assert batch.mask.tolist() == [[True] * 3 + [False], [True] * 2 + [False] * 2, [True] + [False] * 3]
    assert dataset.__getitems__([1]).tokens.shape == (1, 4)


def test_widths_are_few():
    """Eight between powers of two, multiples of 32, none beyond what the longest example needs."""
    batches = SplitBatches(split_of([1, 3000, 1999]))
    widths = [batches.width(longest) for longest in range(1, 3001)]
    assert all(width >= longest for longest, width in enumerate(widths, 1))
    assert [batches.width(longest) for longest in (1, 33, 513, 1025, 1999, 2049, 2900)] == [
        32, 64, 576, 1152, 2048, 2304, 3008,
    ]  # fmt: skip
    assert len(set(widths)) == 16 + 8 + 8 + 4
