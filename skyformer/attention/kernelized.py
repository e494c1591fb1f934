"""Kernelized attention: the softmax replaced by a Gaussian kernel, without approximation."""

from torch import Tensor

from skyformer.attention.base import Attention
from skyformer.ops.dropout import check_probability
from skyformer.ops.gaussian import gaussian_attention


class KernelizedAttention(Attention):
    """`κ(Q / p^¼, K / p^¼) V` (Skyformer, Eq. 3), O(N²) time, O(N) memory.

    The published code always scales by 32^-¼. This class uses the actual head size.

    Args:
        num_heads, head_dim, max_length: see `Attention`.
        dropout: rate on the entries of the kernel matrix. A rate above zero in training takes more than twice as long
            on a CPU, where torch's fused kernel has no dropout.
    """

    def __init__(self, num_heads: int, head_dim: int, max_length: int, dropout: float = 0.0) -> None:
        super().__init__(num_heads, head_dim, max_length)
        self.dropout = check_probability("dropout", dropout)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        self.check_inputs(query, key, value, mask)
        return gaussian_attention(query, key, value, mask, dropout_p=self.dropout_p)
