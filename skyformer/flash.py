"""Exact sums over exponentials of products, in memory linear in the length.

The kernels that torch has for softmax attention give `softmax(Q Kᵀ) V` and the logarithm of its normaliser without
forming `Q Kᵀ`. Multiplied by the normaliser again, that is attention without a normaliser.

Shapes: B batch, H heads, L queries, S keys, P features, V size of a value.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_aten = torch.ops.aten


ALIGNED = 8  # features to which a GPU's kernel is given whole multiples


def has_flash(tensor: Tensor) -> bool:
    """Whether torch has the kernel for this tensor's device and type."""
    if tensor.device.type == "cuda":
        return tensor.dtype != torch.float64
    return tensor.device.type == "cpu" and hasattr(_aten, "_scaled_dot_product_flash_attention_for_cpu")


def _attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """`softmax(Q Kᵀ) V` and the log-sum-exp of the rows, `(B, H, L or more)`."""
    if query.device.type == "cpu":
        return _aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=1.0)
    return _aten._scaled_dot_product_efficient_attention(query, key, value, None, True, scale=1.0)[:2]


def _attend_gradients(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, log_sum: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """For query, key and value, given what `_attend` returned."""
    given = grad, query, key, value
    if query.device.type == "cpu":
        return _aten._scaled_dot_product_flash_attention_for_cpu_backward(*given, out, log_sum, 0.0, False, scale=1.0)
    unused = torch.zeros((), dtype=torch.int64)  # the state of a dropout that there is not
    kernel = _aten._scaled_dot_product_efficient_attention_backward
    wanted = [True, True, True, False]
    return kernel(*given, None, out.contiguous(), log_sum, unused, unused, 0.0, wanted, scale=1.0)[:3]


class _ExponentialSum(torch.autograd.Function):
    """`out_i = Σ_j exp(q_i·k_j − o_i) v_j`.

    With P the softmax and l the log-sum-exp of the products, `out_i = w_i (P V)_i` with `w_i = exp(l_i − o_i)`. The
    gradient for the product (i, j) is `P_ij (w_i ∂out_i)·v_j`: softmax's, for the incoming gradient `w ∂out`, without
    its correction of each row, which the kernel takes from the softmax output that it is given. Zeros take it out.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, offset: Tensor) -> Tensor:
        mean, log_sum = _attend(query, key, value)
        weight = (log_sum[..., : query.shape[2], None] - offset).exp()
        out = weight * mean
        ctx.save_for_backward(query, key, value, log_sum, weight, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        query, key, value, log_sum, weight, out = ctx.saved_tensors
        zeros = torch.zeros_like(value[:, :, :1]).expand_as(query)
        grads = _attend_gradients((weight * grad).to(value.dtype), query, key, value, zeros, log_sum)
        return *grads, -(grad * out).sum(dim=-1, keepdim=True)


def exponential_sum(query: Tensor, key: Tensor, value: Tensor, offset: Tensor) -> Tensor:
    """`out_i = Σ_j exp(q_i·k_j − o_i) v_j`, O((L + S) P) memory; the caller sees to it that the exponents stay small.

    Args:
        query: `(B, H, L, P)`.
        key: `(B, H, S, P)`, of the same dtype.
        value: `(B, H, S, V)`, likewise.
        offset: `(B, H, L, 1)`, o; float32 at least.

    Returns:
        `(B, H, L, V)`, of the dtype of `offset`.
    """
    width = max(query.shape[-1], value.shape[-1])  # the kernel takes one size for all three
    if query.device.type == "cuda":
        width = -(-width // ALIGNED) * ALIGNED
    query, key, padded = (F.pad(x, (0, width - x.shape[-1])) for x in (query, key, value))
    return _ExponentialSum.apply(query, key, padded, offset)[..., : value.shape[-1]]
