"""Sample the rows of [Q; K] that become landmarks.

Rows 0 … N − 1 are the queries' and N … 2N − 1 the keys'. Shapes: B batch, H heads, N tokens, D landmarks, P head
dimension.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def uniform_rows(noise: Tensor, mask: Tensor | None, num_landmarks: int) -> tuple[Tensor, Tensor | None]:
    """Rows drawn uniformly from the valid rows of [Q; K], without replacement (Skyformer, §4.2).

    It takes the rows with the largest of independent uniform numbers. An example's sample depends only on its own noise
    and mask.

    Args:
        noise: `(B or 1, 2, N)`, uniform in [0, 1); `[:, 0]` for queries, `[:, 1]` for keys.
        mask: `(B, N)` bool or None.
        num_landmarks: D; fewer are returned where 2N is smaller.

    Returns:
        Rows `(B or 1, D)` int64, and which of them are valid `(B, D)` bool, or None where all are.
    """
    if mask is not None:
        noise = noise.masked_fill(~mask[:, None, :], -1.0)
    noise = noise.flatten(1)
    largest, rows = noise.topk(min(num_landmarks, noise.shape[1]), dim=1, sorted=False)
    return rows, None if mask is None else largest >= 0


def noise_by_rank(noise: Tensor, mask: Tensor | None) -> Tensor:
    """Give the k-th number to the k-th real token of `mask (B, N)`, `(B or 1, 2, N)` → `(B, 2, N)`.

    Masking tokens and dropping them therefore give the same sample.
    """
    if mask is None:
        return noise
    rank = ranks(mask)[:, None].expand(-1, 2, -1)
    return noise.expand(mask.shape[0], -1, -1).gather(2, rank)


def half_and_half_rows(noise: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The published code's draw: one half of the landmarks from Q, one from K, with replacement.

    There all examples of a batch share the uniform numbers; here each has its own.

    Args:
        noise: `(B or 1, D)`, uniform in [0, 1): first the D/2 draws for queries, then those for keys.
        mask: `(B, N)` bool.

    Returns:
        Rows `(B, D)` int64, and which of them are valid `(B, D)` bool: none in an example without tokens.
    """
    count = mask.sum(dim=1, keepdim=True)
    position = positions_of_ranks(mask).gather(1, sample_ranks(noise, count))
    half = noise.shape[1] // 2
    rows = torch.cat([position[:, :half], position[:, half:] + mask.shape[1]], dim=1)
    return rows, (count > 0).expand_as(rows)


def ranks(mask: Tensor) -> Tensor:
    """How many real tokens stand before each real token, `(B, N)` → `(B, N)` int64; not below 0 at padding."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def sample_ranks(noise: Tensor, count: Tensor) -> Tensor:
    """Turn uniform numbers in [0, 1) into ranks below `count` `(B, 1)`, with replacement; 0 where there is no token."""
    return (noise * count).long().minimum(count - 1).clamp(min=0)


def positions_of_ranks(mask: Tensor) -> Tensor:
    """Return the position of the r-th real token, `(B, N)` → `(B, N)` int64: a stable sort puts real tokens first."""
    return mask.to(torch.int8).argsort(dim=1, descending=True, stable=True)


def gather_rows(query: Tensor, key: Tensor, rows: Tensor, *, distinct: bool = False) -> Tensor:
    """Rows of [Q; K], `(B, H, N, P)` twice and `(B or 1, D)` → `(B, H, D, P)`, without joining Q and K.

    Args:
        query, key, rows: as above.
        distinct: no row comes twice for an example. Gradients are then written, not added, so that on a GPU they do not
            depend on the order of the additions.
    """
    if distinct:
        return _GatherDistinctRows.apply(query, key, rows)
    length = query.shape[2]
    index = rows[:, None, :, None].expand(*query.shape[:2], -1, query.shape[3])
    from_query = query.gather(2, index.clamp(max=length - 1))
    from_key = key.gather(2, (index - length).clamp(min=0))
    return torch.where(index < length, from_query, from_key)


class _GatherDistinctRows(torch.autograd.Function):
    """Rows with all their heads at once, several times as fast on a CPU as `gather` and `scatter`.

    With deterministic algorithms CUDA's `scatter` also makes the CPU wait, which a CUDA graph cannot hold.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = query.shape
        length, example = query.shape[2], _examples(query)
        from_query = query.transpose(1, 2)[example, rows.clamp(max=length - 1)]
        from_key = key.transpose(1, 2)[example, (rows - length).clamp(min=0)]
        gathered = torch.where((rows < length)[:, :, None, None], from_query, from_key)
        return gathered.transpose(1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (rows,) = ctx.saved_tensors
        batch, heads, length, head_dim = ctx.shape
        joined = grad.new_zeros((batch, heads, 2 * length, head_dim))
        joined.transpose(1, 2)[_examples(grad), rows] = grad.transpose(1, 2)
        grad_query, grad_key = joined.split(length, dim=2)
        return grad_query, grad_key, None


def _examples(x: Tensor) -> Tensor:
    """The number of each example, `(B, 1)` int64."""
    return torch.arange(x.shape[0], device=x.device)[:, None]


def segment_means(x: Tensor, mask: Tensor | None, num_segments: int) -> tuple[Tensor, Tensor | None]:
    """Means over m contiguous segments of the real tokens, `(B, H, N, P)` → `(B, H, m, P)`.

    The token of rank r among the n real ones of its example belongs to segment ⌊r m / n⌋. An example with n below
    `num_segments` has n segments, and its other means are zero.

    Returns:
        The means, and which of them an example has `(B, m)` bool, or None where all have all.
    """
    batch, _, length, _ = x.shape
    if mask is None and length % num_segments == 0:
        return x.unflatten(2, (num_segments, -1)).mean(dim=3), None
    tokens = x.new_ones((batch, length), dtype=torch.bool) if mask is None else mask
    count = tokens.sum(dim=1, keepdim=True)
    segments = count.clamp(max=num_segments)
    segment = ranks(tokens) * segments // count.clamp(min=1)
    number = torch.arange(min(num_segments, length), device=x.device)
    members = (segment[:, None, :] == number[:, None]) & tokens[:, None, :]
    weights = members.to(x.dtype) / members.sum(dim=2, keepdim=True).clamp(min=1)
    return weights[:, None] @ x, number < segments
