"""Softmax attention, the method that all others replace."""

import torch.nn.functional as F
from torch import Tensor

from skyformer.attention.base import Attention, attendable, check_probability
from skyformer.functional import check_mask


class SoftmaxAttention(Attention):
    """`softmax(Q Kᵀ / √p) V` (Vaswani et al. 2017), O(N²) time, through torch's fused kernels where there are any.

    Args:
        num_heads, head_dim, max_length: see `Attention`.
        dropout: rate on the attention weights. On the CPU a rate above zero in training falls back to a kernel that
            forms the N × N matrix.
    """

    def __init__(self, num_heads: int, head_dim: int, max_length: int, dropout: float = 0.0) -> None:
        super().__init__(num_heads, head_dim, max_length)
        self.dropout = check_probability("dropout", dropout)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        check_mask("mask", mask, (key.shape[0], key.shape[2]))
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, attn_mask=attendable(mask), dropout_p=dropout)
