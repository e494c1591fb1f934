"""Attention by blocks of queries, so that memory stays linear in the length."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ENTRIES_AT_ONCE = 1 << 24  # of a matrix of queries by keys: 64 MB in float32


def by_query_blocks(attend: Callable[[Tensor], Tensor], query: Tensor, num_keys: int) -> Tensor:
    """`attend(query)`, computed for a few queries at a time and computed anew in the backward pass.

    Args:
        attend: queries `(B, H, any, P)` → `(B, H, any, V)`, each for itself; may close over keys and values.
        query: `(B, H, L, P)`.
        num_keys: S, which with B and H decides how many queries a block holds.

    Returns:
        `(B, H, L, V)`.
    """
    rows = max(1, ENTRIES_AT_ONCE // (query.shape[0] * query.shape[1] * num_keys))
    if rows >= query.shape[2]:
        return attend(query)
    blocks = [checkpoint(attend, block, use_reentrant=False) for block in query.split(rows, dim=2)]
    return torch.cat(blocks, dim=2)
