"""Positions of tokens: their distances, and attention within blocks of them.

Positions count from 0 along a sequence. A pixel at position n of an image of this side is in row ⌊n / side⌋. Shapes: B
batch, H heads, N tokens, P head dimension.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from skyformer.attention import Attention
from skyformer.model.encoder import Encoder, MultiHeadAttention


def distances(start: Tensor, position: Tensor, side: int) -> Tensor:
    """Return the distance of positions `(B, N)` from `start (B,)`, `(B, N)` int64.

    Between pixels it is the larger one of the distances in rows and in columns.

    Args:
        start, position: int64.
        side: side of the images; 0 for other sequences.
    """
    start = start[:, None]
    if not side:
        return (position - start).abs()
    return torch.maximum((position // side - start // side).abs(), (position % side - start % side).abs())


def block_places(position: Tensor, width: int, side: int) -> tuple[Tensor, Tensor]:
    """Return the block of each position, and its place within the block, both int64 like `position`.

    Args:
        position: int64.
        width: positions in a block; of an image, the side of a square of pixels.
        side: side of the images; 0 for other sequences.
    """
    if not side:
        return position // width, position % width
    width, row, column = min(width, side), position // side, position % side
    block = row // width * -(-side // width) + column // width
    return block, row % width * width + column % width


class BlockAttention(Attention):
    """A backend whose attention is limited to blocks: each block is a sequence of its own.

    Equal to a call for each block with all other tokens masked. A backend that does not need absolute positions gives
    the same output if masked tokens are dropped. So all blocks are then one batch of short sequences.

    Args:
        backend: in evaluation mode.
        width: positions in a block; of an image, the side of a square of pixels.
        side: side of the images; 0 for other sequences.
        position: `(B, N)` int64, of the tokens of the next calls; None for 0 … N − 1.
    """

    def __init__(self, backend: Attention, width: int, side: int, position: Tensor | None) -> None:
        super().__init__(backend.num_heads, backend.head_dim, backend.max_length)
        self.backend = backend
        self.width = width
        self.side = side
        self.position = position

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        batch, _, length, _ = query.shape
        position = torch.arange(length, device=query.device).expand(batch, -1)
        position = position if self.position is None else self.position
        real = torch.ones_like(position, dtype=torch.bool) if mask is None else mask
        block, place = block_places(position, self.width, self.side)
        if self.backend.needs_absolute_positions:
            out = torch.zeros_like(value)
            for number in range(int(block.max()) + 1):
                inside = real & (block == number)
                out = torch.where(inside[:, None, :, None], self.backend(query, key, value, inside), out)
            return out
        number, size = int(block.max()) + 1, int(place.max()) + 1
        slot = (block * size + place).masked_fill(~real, number * size)[:, None, :, None]  # padding: behind the last

        def cut(x: Tensor) -> Tensor:
            """`(B, H or 1, N, E)` → `(B · blocks, H or 1, size, E)`."""
            slots = x.new_zeros((batch, x.shape[1], number * size + 1, x.shape[3])).scatter(2, slot.expand_as(x), x)
            return slots[:, :, :-1].unflatten(2, (number, size)).transpose(1, 2).flatten(0, 1)

        inside = cut(real[:, None, :, None])[:, 0, :, 0]
        out = self.backend(cut(query), cut(key), cut(value), inside)
        out = out.unflatten(0, (batch, number)).transpose(1, 2).flatten(2, 3)
        return out.gather(2, slot.clamp(max=number * size - 1).expand_as(value))


@contextmanager
def attention_in_blocks(encoder: Encoder, width: int, side: int, position: Tensor | None) -> Iterator[None]:
    """Limit the attention of each layer to blocks: see `BlockAttention`."""
    layers = [module for module in encoder.modules() if isinstance(module, MultiHeadAttention)]
    backends = [layer.backend for layer in layers]
    if encoder.needs_absolute_positions:
        position = None  # dropped tokens are restored
    try:
        for layer, backend in zip(layers, backends, strict=True):
            layer.backend = BlockAttention(backend, width, side, position)
        yield
    finally:
        for layer, backend in zip(layers, backends, strict=True):
            layer.backend = backend
