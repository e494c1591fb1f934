"""From the prepared arrays to the tensors of a batch."""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.batches import Batch
from datamodules.prepared import Split

ROWS_AT_ONCE = 4096  # bounds the memory of a pass over all images


class SplitBatches(Dataset[Batch]):
    """A split that turns a list of indices into a `Batch`; with a batch sampler, one item is one batch.

    Args:
        split: the arrays.
        pad_multiple: N is the longest length of the batch rounded up to a multiple of this, or of an eighth of the
            power of two below it where that is more.
        pad_to: fixed N in place of that.
        first_id: the id of the stored token 0; where it is above 0, ids below it are free for padding.
    """

    def __init__(self, split: Split, pad_multiple: int = 32, pad_to: int | None = None, first_id: int = 0) -> None:
        self.split = split
        self.pad_multiple = pad_multiple
        self.pad_to = pad_to
        self.first_id = first_id

    @cached_property
    def lengths(self) -> np.ndarray:
        """`(examples,)` int64: tokens of each example that a batch holds, of the longer one of two documents."""
        return self.split.lengths.max(axis=1)

    @cached_property
    def longest(self) -> int:
        """The largest of `lengths`."""
        return int(self.lengths.max())

    @property
    def num_tokens(self) -> np.ndarray:
        """`(examples,)` int64: tokens of each example that a batch holds, of both documents."""
        return self.split.lengths.sum(axis=1)

    @cached_property
    def is_never_padded(self) -> bool:
        """Whether all documents are as long as every batch is wide."""
        return bool((self.split.lengths == self.longest).all()) and self.width(self.longest) == self.longest

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        index = np.asarray(indices)
        label = torch.from_numpy(self.split.labels[index].astype(np.int64))
        return self.collate(index, label)

    def collate(self, index: np.ndarray, label: Tensor) -> Batch:
        """The batch of these examples."""
        count = self.split.num_documents
        documents = (index[:, None] * count + np.arange(count)).ravel()
        starts = self.split.offsets[documents]
        lengths = self.split.offsets[documents + 1] - starts
        width = self.width(int(lengths.max()))
        tokens = np.zeros((len(documents), width), dtype=np.int64)
        for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            tokens[row, :length] = self.split.tokens[start : start + length]
            tokens[row, :length] += self.first_id
        mask = None if self.is_never_padded else torch.arange(width) < torch.from_numpy(lengths)[:, None]
        shape = (len(index), width) if count == 1 else (len(index), count, width)
        return Batch(
            torch.from_numpy(tokens).reshape(shape),
            None if mask is None else mask.reshape(shape),
            label,
            torch.from_numpy(index),
        )

    def width(self, longest: int) -> int:
        """N for a batch whose longest sequence has this many tokens: one of eight between a power of two and the next.

        Ever other sizes would leave ever other gaps in memory: a run on Text then grows to twice the size within 800
        steps, and is slower.
        """
        if self.pad_to:
            return self.pad_to
        step = max(self.pad_multiple, (1 << longest.bit_length()) // 16)
        return min(_rounded_up(longest, step), _rounded_up(self.longest, self.pad_multiple))


class DroppedZeroBatches(SplitBatches):
    """Images of one size whose black pixels (0) are padding, as in the published code, and are left out.

    What is left keeps its position, so that an encoder gives what it would give with the black pixels masked, at a
    third of the cost on Pathfinder.
    """

    @cached_property
    def lengths(self) -> np.ndarray:
        parts = [
            np.count_nonzero(self._pixels[start : start + ROWS_AT_ONCE], axis=1)
            for start in range(0, len(self), ROWS_AT_ONCE)
        ]
        return np.concatenate(parts).astype(np.int64)

    @property
    def num_tokens(self) -> np.ndarray:
        return self.lengths

    @property
    def _pixels(self) -> np.ndarray:
        return self.split.tokens.reshape(len(self), -1)

    def collate(self, index: np.ndarray, label: Tensor) -> Batch:
        rows, columns = np.nonzero(pixels := self._pixels[index])
        lengths = np.bincount(rows, minlength=len(index))
        width = self.width(int(lengths.max()))
        mask = np.arange(width) < lengths[:, None]
        tokens, position = np.zeros((2, len(index), width), dtype=np.int64)
        tokens[mask] = pixels[rows, columns]  # both in the order of rows, then columns
        position[mask] = columns
        return Batch(
            torch.from_numpy(tokens),
            torch.from_numpy(mask),
            label,
            torch.from_numpy(index),
            torch.from_numpy(position),
        )


def _rounded_up(length: int, multiple: int) -> int:
    return max(-(-length // multiple), 1) * multiple
