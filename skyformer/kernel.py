"""The Gaussian kernel κ(x, y) = exp(−‖x − y‖² / 2) between all pairs of rows, and its product with values."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def gaussian_kernel(x: Tensor, y: Tensor) -> Tensor:
    """κ(x, y) for all pairs: `(…, N, P)`, `(…, M, P)` → `(…, N, M)`, float32 at least.

    One product gives the whole exponent x·y − ‖x‖²/2 − ‖y‖²/2, since the norms ride along as further features. Under
    autocast it is in the low precision, whose sums are kept in float32: what is rounded is the exponent, which is small
    where κ is not, and not x·y, which is large. Rounding can leave a squared distance below zero, and κ is never above
    one, so the exponent stops at zero.
    """
    low = product_dtype(x)
    return _exponent(x.to(low), y.to(low)).clamp(max=0).exp()


def gaussian_product(x: Tensor, y: Tensor, value: Tensor) -> Tensor:
    """`κ(x, y) value`, `(…, N, P)`, `(…, M, P)`, `(…, M, V)` → `(…, N, V)`, in the precision of `gaussian_kernel`.

    The same as `gaussian_kernel(x, y) @ value`, with fewer passes over the N × M numbers: one in the forward pass, one
    in the backward pass.
    """
    low = product_dtype(x)
    if torch.compiler.is_compiling():  # fuses those passes by itself
        return gaussian_kernel(x, y).to(low) @ value.to(low)
    with torch.autocast(x.device.type, enabled=False):
        return _GaussianProduct.apply(x.to(low), y.to(low), value.to(low))


class _GaussianProduct(torch.autograd.Function):
    """`O = E Z` with `E = κ(X, Y)`.

    For the incoming gradient G: `∂Z = Eᵀ G`. With `F = (G Zᵀ) ∘ E`, `∂X = F Y − diag(F 1) X` and
    `∂Y = Fᵀ X − diag(Fᵀ 1) Y`, whose sums need no pass over F: `(F 1)_i = G_i · O_i` and `(Fᵀ 1)_j = ∂Z_j · Z_j`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, value: Tensor) -> Tensor:
        kernel = _exponent(x, y).clamp_(max=0).exp_().to(x.dtype)
        out = kernel @ value
        ctx.save_for_backward(x, y, value, kernel, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, value, kernel, out = ctx.saved_tensors
        grad_value = kernel.mT @ grad
        weights = (grad @ value.mT).mul_(kernel)
        grad_x = (weights @ y).sub_(_row_products(grad, out) * x)
        grad_y = (weights.mT @ x).sub_(_row_products(grad_value, value) * y)
        return grad_x, grad_y, grad_value


def _row_products(a: Tensor, b: Tensor) -> Tensor:
    """`a_i · b_i` for each row, `(…, N, V)` twice → `(…, N, 1)`."""
    wide = at_least_float32(a)
    return (a.to(wide) * b.to(wide)).sum(dim=-1, keepdim=True).to(a.dtype)


def _exponent(x: Tensor, y: Tensor) -> Tensor:
    """−‖x − y‖² / 2 but for rounding, float32 at least."""
    x_norm, y_norm = half_square_parts(x), half_square_parts(y)
    left = torch.cat([x, -x_norm, torch.ones_like(y_norm[..., :1, :]).expand_as(x_norm)], dim=-1)
    right = torch.cat([y, torch.ones_like(x_norm[..., :1, :]).expand_as(y_norm), -y_norm], dim=-1)
    return (left @ right.mT).to(at_least_float32(x))


def half_square_parts(x: Tensor) -> Tensor:
    """‖x‖² / 2 in the dtype of `x`, `(…, N, P)` → `(…, N, 1)`, or `(…, N, 3)` for low precision, to be summed.

    Three numbers of eight bits hold what one of 24 does. The gradient goes through the first alone.
    """
    exact = x.to(at_least_float32(x)).square().sum(dim=-1, keepdim=True) / 2
    first = exact.to(x.dtype)
    if exact.dtype == x.dtype:
        return first
    rest = (exact - first).detach()
    second = rest.to(x.dtype)
    return torch.cat([first, second, (rest - second).to(x.dtype)], dim=-1)


def product_dtype(x: Tensor) -> torch.dtype:
    """What products with `x` are computed in: autocast's choice, but for float64."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return x.dtype
    return torch.get_autocast_dtype(device)


def at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
