"""Batches of images: drop black pixels, and augment training images."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from datamodules.augmentation import MOVES_PIXELS_OUT, pixel_sources
from datamodules.batches import Batch
from datamodules.collate import SplitBatches, rounded_up, to_device
from datamodules.prepared.split import Split

ROWS_AT_ONCE = 4096  # bounds the memory of a pass over all images


class ImageBatches(SplitBatches):
    """Square images of one size as sequences of pixels.

    Dropping black pixels (0) is equivalent to masking them: every other pixel keeps its position, so the scores are the
    same. On Pathfinder a third of the tokens remain. An image of black pixels only keeps its first pixel.

    Args:
        split: the arrays.
        drop_black: drop black pixels, which the published code masks.
        augmentations: those that the views combine (`augmentation.py`).
        pad_multiple, device: see `SplitBatches`.
    """

    def __init__(
        self,
        split: Split,
        drop_black: bool,
        augmentations: Sequence[str] = (),
        pad_multiple: int = 32,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(split, pad_multiple, device=device)
        self.drop_black = drop_black
        self.augmentations = augmentations
        self.side = round(self.pixels.shape[1] ** 0.5)

    def width(self, longest: int) -> int:
        """Return the width. A view that repeats pixels may have more non-black pixels than any image of the split."""
        if MOVES_PIXELS_OUT.isdisjoint(self.augmentations):
            return super().width(longest)
        return rounded_up(self.side**2, self.pad_multiple)

    @property
    def pixels(self) -> np.ndarray:
        """`(images, side²)` uint8; not kept, since another process would get a copy in place of the map."""
        return self.split.tokens.reshape(len(self), -1)

    @cached_property
    def lengths(self) -> np.ndarray:
        if not self.drop_black:
            return super().lengths
        parts = [
            np.count_nonzero(self.pixels[start : start + ROWS_AT_ONCE], axis=1)
            for start in range(0, len(self), ROWS_AT_ONCE)
        ]
        return np.maximum(np.concatenate(parts), 1).astype(np.int64)

    @property
    def num_tokens(self) -> np.ndarray:
        return self.lengths

    def collate(self, index: np.ndarray, label: Tensor, view: np.ndarray) -> Batch:
        pixels = self.pixels[index]
        if self.augmentations:
            sources = pixel_sources(torch.from_numpy(view), self.augmentations, self.side)
            pixels = np.take_along_axis(pixels, sources.numpy(), axis=1)
        if not self.drop_black:
            return Batch(torch.from_numpy(pixels.astype(np.int64)), None, label, torch.from_numpy(index))
        kept = pixels > 0
        kept[~kept.any(axis=1), 0] = True
        rows, columns = np.nonzero(kept)
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

    def collate_on_device(self, index: np.ndarray, view: np.ndarray, device: torch.device) -> Batch:
        arrays, example = self.on_device, to_device(index, device)
        label = arrays.labels[example]
        pixels = arrays.tokens.view(len(self), -1)[example]
        if self.augmentations:
            pixels = pixels.gather(1, pixel_sources(to_device(view, device), self.augmentations, self.side))
        if not self.drop_black:
            return Batch(pixels.long(), None, label, example)
        # The k-th kept pixel of a row is the first one with k kept pixels up to it. This search replaces nonzero(),
        # which would synchronise with the device to get their number. If fewer than k are kept, it finds the end of the
        # row, which becomes 0.
        count = (pixels > 0).cumsum(dim=1, dtype=torch.int32)
        width = self.width(int(self.lengths[index].max()))
        number = torch.arange(1, width + 1, dtype=torch.int32, device=device).expand(len(index), -1).contiguous()
        mask = number <= count[:, -1:].clamp(min=1)
        position = torch.searchsorted(count, number).remainder_(count.shape[1])
        return Batch((pixels.gather(1, position) * mask).long(), mask, label, example, position)
