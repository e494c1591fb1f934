"""Exact Gaussian-kernel sums on a CPU in memory linear in the length, by torch's kernel for softmax attention.

The kernel computes `softmax(s Q Kᵀ + b) V` and the logarithm of its normaliser without forming `Q Kᵀ`. Let b be −s/2
times the squared norms of the keys. Multiplying by the normaliser and by the queries' factor `exp(−s ‖q‖² / 2)` then
gives Gaussian-kernel attention, which has no normaliser.

Shapes: B batch, H heads, L queries, S keys, P features, V size of a value.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from skyformer.ops.kernel import half_square

# Private operators of torch, which tests hold against float64; None in a build without them.
KERNEL, GRADIENTS = (
    getattr(torch.ops.aten, f"_scaled_dot_product_flash_attention_for_cpu{end}", None) for end in ("", "_backward")
)
MASKED_HALF_SQUARE = 1e30  # half a squared distance at which κ is 0


def has_flash(tensor: Tensor) -> bool:
    """Return whether torch has the kernel for this tensor's device."""
    return tensor.device.type == "cpu" and KERNEL is not None


def gaussian_sum(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """`out_i = Σ_j κ(√scale q_i, √scale k_j) v_j`, O((L + S) P) memory.

    Args:
        query: `(B, H, L, P)`.
        key: `(B, H, S, P)`, of the same dtype.
        value: `(B, H, S, V)`, as key; finite where masked.
        mask: `(B, S)` bool; a masked key contributes nothing.
        scale: factor on squared distances.

    Returns:
        `(B, H, L, V)`, float32 at least.
    """
    width = max(query.shape[-1], value.shape[-1])  # the kernel takes one size for all three
    query, key, padded = (F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x for x in (query, key, value))
    return _GaussianSum.apply(query, key, padded, mask, scale)[..., : value.shape[-1]]


class _GaussianSum(torch.autograd.Function):
    """With P the softmax and l the log-sum-exp, `out_i = w_i (P V)_i`, `w_i = exp(l_i − scale ‖q_i‖²/2)`.

    The gradient for the exponent (i, j) is `F_ij = w_i P_ij ∂out_i·v_j`. It is softmax's gradient for the incoming
    gradient `w ∂out`, without the row correction. The kernel computes this correction from the softmax output, so
    passing zeros removes it. Then `∂q_i = scale (Σ_j F_ij k_j − q_i Σ_j F_ij)`, and keys are symmetric. The sums of F's
    rows and columns are `∂out_i·out_i` and `∂v_j·v_j`.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        mean, log_sum = _attend(query, key, value, mask, scale)
        weight = (log_sum[..., : query.shape[2], None] - scale * half_square(query)).exp()
        out = weight * mean
        ctx.save_for_backward(query, key, value, mask, log_sum, weight, out)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, log_sum, weight, out = ctx.saved_tensors
        rows = (grad * out).sum(dim=-1, keepdim=True)
        weighted = (weight * grad).to(value.dtype)
        grads = _attend_gradients(weighted, query, key, value, mask, ctx.scale, log_sum)
        del weighted  # here memory is at its peak
        columns = (grads[2] * value).sum(dim=-1, keepdim=True)
        for gradient, own, sums in zip(grads, (query, key), (rows, columns), strict=False):
            gradient.addcmul_(own, sums.to(own.dtype), value=-ctx.scale)
        return *grads, None, None


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """`softmax(s Q Kᵀ + b) V` and the log-sum-exp of the rows, `(B, H, L or more)`."""
    bias = _bias(query, key, mask, scale)
    assert KERNEL is not None
    return KERNEL(query, key, value, 0.0, False, attn_mask=bias, scale=scale)


def _attend_gradients(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, log_sum: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradients for query, key and value, as if b were constant, and without softmax's correction."""
    zeros = torch.zeros_like(value[:, :, :1]).expand_as(query)
    bias = _bias(query, key, mask, scale)
    assert GRADIENTS is not None
    return GRADIENTS(grad, query, key, value, zeros, log_sum, 0.0, False, attn_mask=bias, scale=scale)


def _bias(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """b, `(B, H, L, S)`, every row the same memory."""
    bias = -scale * half_square(key)
    if mask is not None:
        bias = bias.masked_fill(~mask[:, None, :, None], -MASKED_HALF_SQUARE)
    return bias.mT.expand(*query.shape[:3], -1)
