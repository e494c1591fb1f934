"""Positive random features, exp(ω x − ‖x‖²/2 − c), with their gradient."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from skyformer.ops.kernel import LOG2_E, half_square


def query_features(x: Tensor, omega: Tensor) -> Tensor:
    """`exp(ω x − ‖x‖²/2 − c)`, `(B, H, N, P)`, `(m, P)` → `(B, H, N, m)`, with c a row's own largest ω x."""
    return _Features.apply(x, omega, None, False)


def key_features(x: Tensor, omega: Tensor, mask: Tensor | None) -> Tensor:
    """The same with c the largest ω x of a head's real keys, and 0 for the others; `mask` `(B, N)` bool.

    `x` must be finite where masked.
    """
    return _Features.apply(x, omega, mask, True)


class _Features(torch.autograd.Function):
    """`E_ij = exp(ω_j·x_i − ‖x_i‖²/2 − c)`, one matrix from first to last pass.

    For the incoming gradient G, with `F = G ∘ E`: `∂X = F ω − diag(F 1) X`. The x_i of the largest entry, which sets c,
    also loses ω_j of this entry times the sum of all F that share c. ω is treated as a constant.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, omega: Tensor, mask: Tensor | None, whole: bool) -> Tensor:
        exponent = (x * LOG2_E) @ omega.mT
        if mask is not None:
            exponent.masked_fill_(~mask[:, None, :, None], -torch.inf)
        flat = exponent.flatten(2)[:, :, None] if whole else exponent
        largest, place = flat.max(dim=-1, keepdim=True)
        largest = largest.nan_to_num(neginf=0.0)  # an example without a token
        features = exponent.sub_(half_square(x) * LOG2_E + largest).exp2_()
        ctx.save_for_backward(x, omega, features, place)
        ctx.whole = whole
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, omega, features, place = ctx.saved_tensors
        weights = grad * features
        sums = weights.sum(dim=-1, keepdim=True)
        gradient = torch.addcmul(weights @ omega, sums, x, value=-1)
        if not ctx.whole:
            return gradient.addcmul_(sums, omega[place[..., 0]], value=-1), None, None, None
        row, feature = place // omega.shape[0], place % omega.shape[0]
        at_largest = sums.sum(dim=2, keepdim=True) * omega[feature[..., 0]]
        return gradient.scatter_add_(2, row.expand_as(at_largest), -at_largest), None, None, None
