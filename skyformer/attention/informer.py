"""Informer: softmax attention for the most selective queries, the mean of the values for the others."""

import math

import torch
from torch import Tensor

from skyformer.attention.base import Attention, attendable
from skyformer.ops.dropout import check_probability
from skyformer.ops.landmarks import positions_of_ranks, ranks, sample_ranks
from skyformer.ops.softmax import softmax_attention


class InformerAttention(Attention):
    """ProbSparse attention (Zhou et al., AAAI 2021, Eq. 4–6), O(N s P + u N P) time.

    `M(q_i) = max_j (q_i·k_j / √p) − (1/n) Σ_j (q_i·k_j / √p)`, over s sampled keys, measures how far a query's
    attention is from uniform. The u queries with the largest M attend as in softmax attention. The others get the mean
    of the values. n counts the real tokens, and only they are sampled.

    Each example has its own sample, shared by its heads. Training draws a new one at every step. In `eval()` it comes
    from numbers that are drawn once from `seed` and saved.

    Args:
        num_heads, head_dim, max_length: see `Attention`.
        num_queries: u; None for ⌈c ln n⌉, the paper's choice.
        factor: c; s = ⌈c ln n⌉.
        seed: seed of the sample in `eval()`.
        dropout: rate on the attention weights of the u queries.

    Raises:
        ValueError: for an invalid argument, naming it and valid values.
    """

    eval_noise: Tensor

    def __init__(
        self, num_heads: int, head_dim: int, max_length: int,
        num_queries: int | None = 128, factor: float = 5.0, seed: int = 0, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(num_heads, head_dim, max_length)
        if num_queries is not None and num_queries < 1:
            raise ValueError(f"num_queries={num_queries} must be at least 1, or null for ⌈factor · ln n⌉")
        if not 0 < factor <= max_length:
            raise ValueError(f"factor={factor} must be greater than 0 and at most max_length={max_length}")
        self.num_queries = num_queries
        self.factor = factor
        self.dropout = check_probability("dropout", dropout)
        size, generator = (max_length, self._sample_size(max_length)), torch.Generator().manual_seed(seed)
        self.register_draw("eval_noise", torch.rand(size, generator=generator, dtype=torch.float32))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        self.check_inputs(query, key, value, mask)
        batch, _, length, _ = key.shape
        tokens = key.new_ones((batch, length), dtype=torch.bool) if mask is None else mask
        count = tokens.sum(dim=1)
        logarithm = (self.factor * count.clamp(min=1).double().log()).ceil().long()
        sampled = logarithm.clamp(min=1).minimum(count)
        active = sampled if self.num_queries is None else count.clamp(max=self.num_queries)
        most = self._sample_size(length) if self.num_queries is None else self.num_queries
        with torch.no_grad():
            measure = self._measure(query, key, tokens, sampled)
            chosen = measure.topk(min(most, length), dim=2).indices
        attended = self._attend(query, key, value, mask, chosen)
        mean = _mean(value, tokens)
        is_active = torch.arange(chosen.shape[2], device=key.device) < active[:, None]
        rows = torch.where(is_active[:, None, :, None], attended, mean)
        index = chosen[..., None].expand(-1, -1, -1, value.shape[-1])
        return mean.expand_as(value).scatter(2, index, rows)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, chosen: Tensor) -> Tensor:
        active = query.gather(2, chosen[..., None].expand(-1, -1, -1, query.shape[-1]))
        return softmax_attention(active, key, value, attendable(mask), dropout_p=self.dropout_p)

    def _measure(self, query: Tensor, key: Tensor, tokens: Tensor, sampled: Tensor) -> Tensor:
        """M, `(B, H, N)`; −∞ for padding. One sampled key of every query at a time, so that memory stays O(N P)."""
        batch, heads, length, head_dim = key.shape
        count = tokens.sum(dim=1, keepdim=True)
        places = positions_of_ranks(tokens)
        largest = query.new_full((batch, heads, length), float("-inf"))
        total = query.new_zeros((batch, heads, length))
        rows = key.reshape(-1, head_dim)  # whole rows are picked several times faster than by `gather`
        first = torch.arange(batch * heads, device=key.device).view(batch, heads, 1) * length
        for number, noise in enumerate(self._noise(tokens)):
            index = places.gather(1, sample_ranks(noise, count))[:, None] + first
            product = (query * rows.index_select(0, index.flatten()).view_as(query)).sum(dim=-1)
            taken = (number < sampled)[:, None, None]
            largest = torch.where(taken, largest.maximum(product), largest)
            total = torch.where(taken, total + product, total)
        measure = (largest - total / count.clamp(min=1)[..., None]) * self.head_dim**-0.5
        return measure.masked_fill(~tokens[:, None], float("-inf"))

    def _noise(self, tokens: Tensor) -> Tensor:
        """Uniform numbers `(s, B, N)`: new ones, or the fixed ones, the r-th row for the r-th real token."""
        batch, length = tokens.shape
        size = self._sample_size(length)
        if self.training:
            return torch.rand((size, batch, length), dtype=torch.float32, device=tokens.device)
        return self.eval_noise[:, :size][ranks(tokens)].permute(2, 0, 1)

    def _sample_size(self, length: int) -> int:
        """⌈c ln n⌉ for n = `length`, at least 1."""
        return max(1, math.ceil(self.factor * math.log(length)))


def _mean(value: Tensor, tokens: Tensor) -> Tensor:
    """Return the mean over the real tokens, `(B, H, 1, P)`; zero without a real token."""
    real = tokens[:, None, :, None]
    return value.masked_fill(~real, 0).sum(dim=2, keepdim=True) / real.sum(dim=2, keepdim=True).clamp(min=1)
