"""Softmax attention, the baseline."""

from torch import Tensor

from skyformer.attention.base import Attention, attendable
from skyformer.ops.dropout import check_probability
from skyformer.ops.softmax import softmax_attention


class SoftmaxAttention(Attention):
    """`softmax(Q Kᵀ / √p) V` (Vaswani et al. 2017), O(N²) time, through torch's fused kernels where there are any.

    Args:
        num_heads, head_dim, max_length: see `Attention`.
        dropout: rate on the attention weights. A rate above zero in training is more than twice as slow on a CPU,
            where torch's fused kernel has no dropout.
    """

    def __init__(self, num_heads: int, head_dim: int, max_length: int, dropout: float = 0.0) -> None:
        super().__init__(num_heads, head_dim, max_length)
        self.dropout = check_probability("dropout", dropout)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        self.check_inputs(query, key, value, mask)
        return softmax_attention(query, key, value, attendable(mask), dropout_p=self.dropout_p)
