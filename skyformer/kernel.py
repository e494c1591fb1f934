"""The Gaussian kernel κ(x, y) = exp(−‖x − y‖² / 2) between all pairs of rows, and its product with values."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ENTRIES_IN_CACHE = 1 << 18  # 1 MB in float32


def gaussian_kernel(x: Tensor, y: Tensor) -> Tensor:
    """κ(x, y) for all pairs: `(…, N, P)`, `(…, M, P)` → `(…, N, M)`, float32 at least.

    One product gives the whole exponent x·y − ‖x‖²/2 − ‖y‖²/2, since the norms ride along as further features. Under
    autocast it is in the low precision, whose sums are kept in float32: what is rounded is the exponent, which is small
    where κ is not, and not x·y, which is large. Rounding can leave a squared distance below zero, and κ is never above
    one, so the exponent stops at zero.
    """
    low = product_dtype(x)
    x, y = x.to(low), y.to(low)
    if torch.compiler.is_compiling():  # fuses the passes by itself
        return _exponent(x, y).clamp(max=0).exp()
    with torch.autocast(x.device.type, enabled=False):
        return _GaussianKernel.apply(x, y)


class _GaussianKernel(torch.autograd.Function):
    """`E = κ(X, Y)`. For the incoming gradient G, with `F = G ∘ E`, `∂X = F Y − diag(F 1) X` and
    `∂Y = Fᵀ X − diag(Fᵀ 1) Y`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        kernel = _exponent(x, y).clamp_(max=0).exp_()
        ctx.save_for_backward(x, y, kernel)
        return kernel

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, y, kernel = ctx.saved_tensors
        weights = grad * kernel
        rows, columns = (weights.sum(dim=dim)[..., None].to(x.dtype) for dim in (-1, -2))
        weights = weights.to(x.dtype)
        return (weights @ y).sub_(rows * x), (weights.mT @ x).sub_(columns * y)


def gaussian_product(x: Tensor, y: Tensor, value: Tensor) -> Tensor:
    """`κ(x, y) value`, `(…, N, P)`, `(…, M, P)`, `(…, M, V)` → `(…, N, V)`, in the precision of `gaussian_kernel`.

    The same as `gaussian_kernel(x, y) @ value`, with fewer passes over the N × M numbers: one in the forward pass, one
    in the backward pass, each while the numbers are in the processor's cache.
    """
    low = product_dtype(x)
    if torch.compiler.is_compiling():
        return gaussian_kernel(x, y).to(low) @ value.to(low)
    with torch.autocast(x.device.type, enabled=False):
        flat = (tensor.to(low).reshape(-1, *tensor.shape[-2:]) for tensor in (x, y, value))
        return _GaussianProduct.apply(*flat).reshape(*x.shape[:-1], value.shape[-1])


class _GaussianProduct(torch.autograd.Function):
    """`O = E Z` with `E = κ(X, Y)`.

    For the incoming gradient G: `∂Z = Eᵀ G`. With `F = (G Zᵀ) ∘ E`, `∂X = F Y − diag(F 1) X` and
    `∂Y = Fᵀ X − diag(Fᵀ 1) Y`, whose sums need no pass over F: `(F 1)_i = G_i · O_i` and `(Fᵀ 1)_j = ∂Z_j · Z_j`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, value: Tensor) -> Tensor:
        kernel = x.new_empty((len(x), x.shape[1], y.shape[1]))
        out = x.new_empty((len(x), x.shape[1], value.shape[2]))
        left, right = _features(x, y)
        for part in _parts(kernel):
            entries = torch.bmm(left[part], right[part].mT, out=kernel[part])
            exact = entries.to(at_least_float32(x)).clamp_(max=0).exp_()
            if exact.dtype != entries.dtype:
                entries.copy_(exact)
            torch.bmm(entries, value[part], out=out[part])
        ctx.save_for_backward(x, y, value, kernel, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, y, value, kernel, out = ctx.saved_tensors
        grad_x, grad_y, grad_value = (torch.empty_like(tensor) for tensor in (x, y, value))
        for part in _parts(kernel):
            entries, own_grad = kernel[part], grad[part]
            torch.bmm(entries.mT, own_grad, out=grad_value[part])
            weights = torch.bmm(own_grad, value[part].mT).mul_(entries)
            torch.bmm(weights, y[part], out=grad_x[part])
            torch.bmm(weights.mT, x[part], out=grad_y[part])
        grad_x.sub_(_row_products(grad, out) * x)
        grad_y.sub_(_row_products(grad_value, value) * y)
        return grad_x, grad_y, grad_value


def _parts(kernel: Tensor) -> Iterator[slice]:
    """Of the first axis: on a CPU as many matrices at a time as its caches hold, elsewhere all."""
    count, rows, columns = kernel.shape
    step = max(1, ENTRIES_IN_CACHE // max(1, rows * columns)) if kernel.device.type == "cpu" else max(1, count)
    return (slice(start, start + step) for start in range(0, count, step))


def _row_products(a: Tensor, b: Tensor) -> Tensor:
    """`a_i · b_i` for each row, `(…, N, V)` twice → `(…, N, 1)`."""
    wide = at_least_float32(a)
    return (a.to(wide) * b.to(wide)).sum(dim=-1, keepdim=True).to(a.dtype)


def _exponent(x: Tensor, y: Tensor) -> Tensor:
    """−‖x − y‖² / 2 but for rounding, float32 at least."""
    left, right = _features(x, y)
    return (left @ right.mT).to(at_least_float32(x))


def _features(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Rows whose products are −‖x − y‖² / 2."""
    x_norm, y_norm = half_square_parts(x), half_square_parts(y)
    left = torch.cat([x, -x_norm, torch.ones_like(y_norm[..., :1, :]).expand_as(x_norm)], dim=-1)
    right = torch.cat([y, torch.ones_like(x_norm[..., :1, :]).expand_as(y_norm), -y_norm], dim=-1)
    return left, right


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
