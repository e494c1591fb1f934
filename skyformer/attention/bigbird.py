"""BigBird: softmax attention on a window, some global and some random blocks of keys."""

import torch
import torch.nn.functional as F
from torch import Tensor

from skyformer.attention.base import Attention, attendable
from skyformer.ops.dropout import check_probability
from skyformer.ops.softmax import softmax_attention


class BigBirdAttention(Attention):
    """Block-sparse softmax attention (Zaheer et al., NeurIPS 2020, §2, internal global tokens), O(N K b P) time.

    Tokens are cut into blocks of b positions. A block of queries attends to K = 5 + r blocks: itself and its
    neighbours, the first and the last block with a real token, and r random others. The first and the last block attend
    to all. Sequences are padded to whole blocks internally. A layer's random blocks are drawn with its weights, shared
    by all heads, and saved.

    Args:
        num_heads, head_dim, max_length: see `Attention`.
        block_size: b.
        num_random_blocks: r.
        dropout: rate on the attention weights.

    Raises:
        ValueError: for an invalid argument, naming it and valid values.
    """

    needs_absolute_positions = True
    noise: Tensor

    def __init__(
        self, num_heads: int, head_dim: int, max_length: int,
        block_size: int = 64, num_random_blocks: int = 3, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(num_heads, head_dim, max_length)
        if not 1 <= block_size <= max_length:
            raise ValueError(f"block_size={block_size} must lie in 1 ... max_length={max_length}")
        if num_random_blocks < 0:
            raise ValueError(f"num_random_blocks={num_random_blocks} must be at least 0")
        self.block_size = block_size
        self.num_random_blocks = num_random_blocks
        self.dropout = check_probability("dropout", dropout)
        blocks = -(-max_length // block_size)
        self.register_draw("noise", torch.rand((blocks, blocks), dtype=torch.float32))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        self.check_inputs(query, key, value, mask)
        batch, _, length, _ = key.shape
        tokens = key.new_ones((batch, length), dtype=torch.bool) if mask is None else mask
        pad = -length % self.block_size
        tokens = F.pad(tokens, (0, pad))
        query, key, value = (F.pad(x, (0, 0, 0, pad)) for x in (query, key, value))
        last = self._last_block(tokens)
        out = self._sparse(query, key, value, tokens, last)
        return self._with_global_rows(out, query, key, value, tokens, last)[:, :, :length]

    def _last_block(self, tokens: Tensor) -> Tensor:
        """The last block with a real token, `(B,)`; 0 where there is no real token."""
        block = torch.arange(tokens.shape[1], device=tokens.device) // self.block_size
        return (block * tokens).amax(dim=1)

    def _sparse(self, query: Tensor, key: Tensor, value: Tensor, tokens: Tensor, last: Tensor) -> Tensor:
        """Every block of queries on its K blocks of keys."""
        batch, _, padded, _ = key.shape
        blocks = padded // self.block_size
        chosen, taken = self._choose(blocks, last)
        number = chosen.shape[2]
        index = (chosen + blocks * torch.arange(batch, device=key.device)[:, None, None]).flatten()

        def gather(x: Tensor) -> Tensor:
            """`(B, H or 1, N, E)` → `(B · blocks, H or 1, K b, E)`."""
            in_blocks = x.unflatten(2, (blocks, self.block_size)).transpose(1, 2).flatten(0, 1)
            picked = in_blocks.index_select(0, index)  # and its gradient: several times as fast as gather's on a CPU
            return picked.unflatten(0, (-1, number)).transpose(1, 2).flatten(2, 3)

        real = gather(tokens[:, None, :, None])[:, 0, :, 0].unflatten(1, (number, self.block_size))
        real = (real & taken.reshape(-1, number, 1)).flatten(1)
        rows = query.unflatten(2, (blocks, self.block_size)).transpose(1, 2).flatten(0, 1)
        out = self._softmax(rows, gather(key), gather(value), real)
        return out.unflatten(0, (batch, blocks)).transpose(1, 2).flatten(2, 3)

    def _choose(self, blocks: int, last: Tensor) -> tuple[Tensor, Tensor]:
        """Return the key blocks that each query block attends to, `(B, blocks, K)`, and which of these count, bool."""
        row, column = torch.arange(blocks, device=last.device)[:, None], torch.arange(blocks, device=last.device)
        last = last[:, None, None]
        sure = ((row - column).abs() <= 1) | (column == 0) | (column == last)
        priority = torch.where(sure, 2.0, self.noise[:blocks, :blocks]).masked_fill(column > last, -1.0)
        count = sure.logical_and(column <= last).sum(dim=2, keepdim=True) + self.num_random_blocks
        value, chosen = priority.topk(min(blocks, 5 + self.num_random_blocks), dim=2)
        place = torch.arange(chosen.shape[2], device=last.device)
        return chosen, (value >= 0) & (place < count)

    def _with_global_rows(
        self, out: Tensor, query: Tensor, key: Tensor, value: Tensor, tokens: Tensor, last: Tensor
    ) -> Tensor:
        """The same with the first and the last block's queries on all keys."""
        inside = torch.arange(self.block_size, device=last.device)
        places = torch.cat([inside.expand(len(last), -1), last[:, None] * self.block_size + inside], dim=1)
        index = places[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[-1])
        rows = self._softmax(query.gather(2, index), key, value, tokens)
        return out.scatter(2, index, rows.to(out.dtype))

    def _softmax(self, query: Tensor, key: Tensor, value: Tensor, tokens: Tensor) -> Tensor:
        return softmax_attention(query, key, value, attendable(tokens), dropout_p=self.dropout_p)
