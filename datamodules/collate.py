"""Make the tensors of a batch from the prepared arrays."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.batches import Batch
from datamodules.prepared.layout import UNLABELLED
from datamodules.prepared.split import Split


class SplitBatches(Dataset[Batch]):
    """A dataset that maps a list of indices to a `Batch`; with a batch sampler, one item is one batch.

    Args:
        split: the arrays.
        pad_multiple: N is the longest length of the batch, rounded up to a multiple of this. For long sequences the
            multiple is an eighth of the power of two below the length.
        pad_to: fixed N in place of that.
        first_id: the id of the stored token 0. If it is above 0, the ids below it are free for padding.
        device: the device that holds a copy of the arrays and makes the batches, without synchronisation. None: the CPU
            makes them from the memory map. The batches are equal.
    """

    def __init__(
        self,
        split: Split,
        pad_multiple: int = 32,
        pad_to: int | None = None,
        first_id: int = 0,
        device: torch.device | None = None,
    ) -> None:
        self.split = split
        self.pad_multiple = pad_multiple
        self.pad_to = pad_to
        self.first_id = first_id
        self.device = device

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each example in a batch, `(examples,)` int64; of two documents, the longer one's."""
        return self.split.lengths.max(axis=1)

    @cached_property
    def longest(self) -> int:
        """The largest of `lengths`."""
        return int(self.lengths.max())

    @property
    def num_tokens(self) -> np.ndarray:
        """Tokens of each example in a batch, `(examples,)` int64, over both documents."""
        return self.split.lengths.sum(axis=1)

    @cached_property
    def is_never_padded(self) -> bool:
        """Return whether all documents have the width of every batch."""
        return bool((self.split.lengths == self.longest).all()) and self.width(self.longest) == self.longest

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        view, index = np.divmod(indices, len(self))
        if self.device is not None:
            return self.collate_on_device(index, view, self.device)
        label = self._token_labels(index) if self.split.token_labels else self.split.labels[index].astype(np.int64)
        return self.collate(index, torch.from_numpy(label), view)

    def _token_labels(self, index: np.ndarray) -> np.ndarray:
        """`(B, N)` int64, `UNLABELLED` where there is no token."""
        label = np.full((len(index), self.width(int(self.lengths[index].max()))), UNLABELLED, dtype=np.int64)
        for row, number in zip(label, index, strict=True):
            start, end = self.split.offsets[number : number + 2]
            row[: end - start] = self.split.labels[start:end]
        return label

    def collate(self, index: np.ndarray, label: Tensor, view: np.ndarray) -> Batch:
        """The batch of these examples; a sequence has one view, 0."""
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

    def collate_on_device(self, index: np.ndarray, view: np.ndarray, device: torch.device) -> Batch:
        """The same batch, made on `device`. Its width comes from the lengths on the host."""
        count, arrays = self.split.num_documents, self.on_device
        width = self.width(int(self.lengths[index].max()))
        example = to_device(index, device)
        document = example
        if count > 1:
            document = (example[:, None] * count + torch.arange(count, device=device)).flatten()
        start = arrays.offsets[document]
        place = torch.arange(width, device=device)
        mask = place < (arrays.offsets[document + 1] - start)[:, None]
        source = (start[:, None] + place).clamp_(max=len(arrays.tokens) - 1)
        tokens = (arrays.tokens[source].long() + self.first_id) * mask
        label = arrays.labels[source].where(mask, UNLABELLED) if self.split.token_labels else arrays.labels[example]
        shape = (len(index), width) if count == 1 else (len(index), count, width)
        return Batch(
            tokens.reshape(shape),
            None if self.is_never_padded else mask.reshape(shape),
            label,
            example,
        )

    @cached_property
    def on_device(self) -> "DeviceArrays":
        """The arrays of the split on `device`."""
        assert self.device is not None
        split = self.split
        return DeviceArrays(
            torch.from_numpy(np.array(split.tokens)).to(self.device),
            torch.from_numpy(np.array(split.offsets)).to(self.device),
            torch.from_numpy(split.labels.astype(np.int64)).to(self.device),
        )

    def width(self, longest: int) -> int:
        """N for a batch whose longest sequence has this many tokens: one of eight between a power of two and the next.

        Many distinct widths fragment the allocator: a run on Text then doubles its memory within 800 steps and slows
        down.
        """
        if self.pad_to:
            return self.pad_to
        step = max(self.pad_multiple, (1 << longest.bit_length()) // 16)
        return min(rounded_up(longest, step), rounded_up(self.longest, self.pad_multiple))


class DeviceArrays(NamedTuple):
    """Arrays of a `Split` on a device: `tokens` uint8 or int16, `offsets` int64, `labels` int64."""

    tokens: Tensor
    offsets: Tensor
    labels: Tensor


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy the array to the device; to a GPU from pinned memory, without synchronisation."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class JoinedSplits(Dataset[Batch]):
    """Several splits as one dataset; each batch is from one split.

    Args:
        splits: at least one. Example i of the joined splits is example i − (examples of those before) of its own.
    """

    def __init__(self, splits: Sequence[SplitBatches]) -> None:
        self.splits = splits
        self.starts = [0, *accumulate(len(split) for split in splits)]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, item: int) -> Batch:
        return self.__getitems__([item])

    def __getitems__(self, items: list[int]) -> Batch:
        view, example = np.divmod(items, len(self))
        number = bisect_right(self.starts, example[0]) - 1
        split, start = self.splits[number], self.starts[number]
        batch = split.__getitems__((example - start + view * len(split)).tolist())
        return batch._replace(example=batch.example + start)


def rounded_up(length: int, multiple: int) -> int:
    """The smallest multiple that is at least `length`, and not 0."""
    return max(-(-length // multiple), 1) * multiple
