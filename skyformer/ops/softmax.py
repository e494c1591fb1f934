"""Softmax attention with dropout on its weights, where torch's fused kernels have none."""

import torch
import torch.nn.functional as F
from torch import Tensor

from skyformer.ops.dropout import dropout
from skyformer.ops.recompute import by_query_blocks


def softmax_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """`dropout(softmax(Q Kᵀ / √p)) V`, like `torch.nn.functional.scaled_dot_product_attention`.

    On a CPU with dropout, torch would form all L × S weights and draw a number for each. There this function uses
    blocks of queries and faster dropout.

    Args:
        query: `(B, H, L, P)`, floating.
        key, value: `(B, H, S, P)`.
        mask: bool, broadcastable to `(B, H, L, S)`, with the L axis of size 1; True = attend. No row may be all False.
        dropout_p: probability of dropping a weight.

    Returns:
        `(B, H, L, P)`.
    """
    if dropout_p == 0 or query.device.type != "cpu" or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout_p)

    def attend(block: Tensor) -> Tensor:
        scores = (block * query.shape[-1] ** -0.5) @ key.mT
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return dropout(scores.softmax(dim=-1), dropout_p).to(value.dtype) @ value

    return by_query_blocks(attend, query, key.shape[2], draws_numbers=True)
