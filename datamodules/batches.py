"""Batches of similar length, in an order that is a pure function of (seed, epoch, rank).

`collate.py` makes the tensors. Shapes: B batch, N tokens.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Sampler

POOL = 64  # batches that are drawn together and sorted by length: enough for 3 % of padding, few enough to stay random


class BatchSizeError(ValueError):
    """A batch size that leaves no batch."""


class Batch(NamedTuple):
    """The input of a training step. For examples of two documents, `tokens` and `mask` are `(B, 2, N)`.

    Attributes:
        tokens: `(B, N)` int64, padded with 0.
        mask: `(B, N)` bool, True = a real token; None where no example is padded.
        label: `(B,)` int64; or `(B, N)`, the class of each token, and −100 for a token without one.
        example: `(B,)` int64, the example's place in its split.
        position: `(B, N)` int64, each token's position in its sequence if tokens were dropped; None for 0 … N − 1.
    """

    tokens: Tensor
    mask: Tensor | None
    label: Tensor
    example: Tensor
    position: Tensor | None = None


class TrainBatches(Sampler[list[int]]):
    """Sample batches for training. In an epoch all ranks have equally many, and each example occurs at most once.

    An epoch is a random permutation that is cut into pools. A pool is sorted by length and cut into batches for all
    ranks together. Each rank takes an equal share of a batch, and the batches of a pool are shuffled. The last,
    incomplete batch is dropped. It has other examples in every epoch.

    A batch item is `example + view * len(lengths)`, which encodes the example and its view (`augmentation.py`).

    Args:
        lengths: `(examples,)` of the whole split.
        batch_size: examples a rank.
        seed: seed of the order.
        rank, world_size: this process and the number of processes.
        place: maps the number of batches to the epoch and the batch at which an iteration begins.
        views: number of views of an example; the view of an epoch is a function of (seed, epoch, example).

    Raises:
        BatchSizeError: for a batch size that leaves no batch.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        place: Callable[[int], tuple[int, int]] = lambda batches: (0, 0),
        views: int = 1,
    ) -> None:
        self.lengths = lengths
        self.global_batch = batch_size * world_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.place = place
        self.views = views
        if batch_size < 1:
            raise BatchSizeError(f"data.batch_size={batch_size} must be at least 1")
        if len(self) == 0:
            raise BatchSizeError(
                f"data.batch_size={batch_size} on {world_size} process(es) needs {self.global_batch} training "
                f"examples, there are {len(lengths)}"
            )

    def __len__(self) -> int:
        return len(self.lengths) // self.global_batch

    def __iter__(self) -> Iterator[list[int]]:
        epoch, start = self.place(len(self))
        for batch in self.order(epoch)[start:]:
            yield batch.tolist()

    def order(self, epoch: int) -> np.ndarray:
        """This rank's batches of the epoch, `(batches, batch size)`."""
        order = self._examples(epoch)
        if self.views > 1:
            sampled = np.random.default_rng([self.seed, epoch, 1]).integers(self.views, size=len(self.lengths))
            order = order + sampled[order] * len(self.lengths)
        return order[:, self.rank :: self.world_size]

    def _examples(self, epoch: int) -> np.ndarray:
        """All batches of the epoch, `(batches, global batch)`."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.lengths))[: len(self) * self.global_batch]
        if (self.lengths == self.lengths[0]).all():
            return order.reshape(-1, self.global_batch)
        pools = []
        for start in range(0, len(order), POOL * self.global_batch):
            pool = order[start : start + POOL * self.global_batch]
            pool = pool[np.argsort(self.lengths[pool], kind="stable")].reshape(-1, self.global_batch)
            pools.append(pool[rng.permutation(len(pool))])
        return np.concatenate(pools)


class ScheduledBatches(Sampler[list[int]]):
    """Training batches of several splits in sequence: each for a number of batches, the last one for the rest.

    The examples are those of `collate.JoinedSplits`, which joins the splits. An epoch has as many batches as one of
    the last split.

    Args:
        stages: the batches of each split; their own `place` is not used.
        ends: number of batches, over all epochs, after which each stage but the last ends; rising.
        taken: gives the number of batches that training has taken, over all epochs.
        place: as in `TrainBatches`.
    """

    def __init__(
        self,
        stages: Sequence[TrainBatches],
        ends: Sequence[int],
        taken: Callable[[], int],
        place: Callable[[int], tuple[int, int]],
    ) -> None:
        self.stages = stages
        self.ends = list(ends)
        self.taken = taken
        self.place = place
        self.sizes = [len(stage.lengths) for stage in stages]

    def __len__(self) -> int:
        return len(self.stages[-1])

    def __iter__(self) -> Iterator[list[int]]:
        _, start = self.place(len(self))
        first = self.taken()
        known: tuple[int, int] | None = None
        for number in range(first, first + len(self) - start):
            stage = bisect_right(self.ends, number)
            epoch, batch = divmod(number - ([0, *self.ends][stage]), len(self.stages[stage]))
            if known != (stage, epoch):
                known, order = (stage, epoch), self._joined(stage, self.stages[stage].order(epoch))
            yield order[batch].tolist()

    def _joined(self, stage: int, order: np.ndarray) -> np.ndarray:
        """Items of one split as items of the joined splits."""
        view, example = np.divmod(order, self.sizes[stage])
        return example + sum(self.sizes[:stage]) + view * sum(self.sizes)


class EvalBatches(Sampler[list[int]]):
    """Sample batches for evaluation, with every example exactly once over all ranks and similar lengths together.

    All ranks have equally many batches, so no rank waits for another. Their numbers of examples differ by at most one.
    A batch may therefore have one example more than `batch_size`.

    Args:
        lengths: `(examples,)` of the whole split.
        batch_size: examples a rank, at most.
        rank, world_size: this process and the number of processes.
        num_examples: evaluate only this many, the first of a fixed random order; default all.

    Raises:
        BatchSizeError: when a rank would have no example.
    """

    def __init__(
        self, lengths: np.ndarray, batch_size: int, rank: int = 0, world_size: int = 1, num_examples: int | None = None
    ) -> None:
        # A fixed random order, since sources list one class after the other. The first few batches
        # (trainer.limit_val_batches), or the first few examples, should stand for all.
        rng = np.random.default_rng(0)
        order = rng.permutation(len(lengths))[:num_examples]
        order = order[np.argsort(lengths[order], kind="stable")]
        smallest_share, largest_share = len(order) // world_size, -(-len(order) // world_size)
        if smallest_share == 0:
            raise BatchSizeError(
                f"data.eval_batch_size={batch_size} leaves {len(order)} of {len(lengths)} examples to evaluate on "
                f"{world_size} process(es); each needs at least one"
            )
        count = min(-(-largest_share // batch_size), smallest_share)
        shares = np.array_split(order[rank::world_size], count)
        self.batches = [shares[number] for number in rng.permutation(count)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield batch.tolist()
