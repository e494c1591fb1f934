"""The Gaussian kernel κ(x, y) = exp(−‖x − y‖² / 2) between all pairs of rows.

It is computed as `2^(x'·y' − ‖x'‖²/2 − ‖y'‖²/2)` with `x' = √(log₂ e) x`: a power of two costs a CPU less than half of
an exponential. One product gives the whole exponent, since the norms are appended as features.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOG2_E = math.log2(math.e)  # e^z = 2^(LOG2_E z)
TO_BASE_TWO = math.sqrt(LOG2_E)  # factor on x and y


def gaussian_kernel(x: Tensor, y: Tensor) -> Tensor:
    """κ(x, y) for all pairs: `(…, N, P)`, `(…, M, P)` → `(…, N, M)`, float32 at least.

    Under autocast the product is in the low precision with sums in float32. So the exponent is rounded, which is small
    where κ is large, and not x·y, which is large. Rounding can make a squared distance negative, so the exponent is
    clamped to at most zero.
    """
    low = product_dtype(x)
    x, y = x.to(low), y.to(low)
    if torch.compiler.is_compiling():  # fuses the passes by itself
        return power_of_two_(_exponent(x, y).clone())
    with torch.autocast(x.device.type, enabled=False):
        return _GaussianKernel.apply(x, y)


class _GaussianKernel(torch.autograd.Function):
    """`E = κ(X, Y)`. For the incoming gradient G, with `F = G ∘ E`, `∂X = F Y − diag(F 1) X` and
    `∂Y = Fᵀ X − diag(Fᵀ 1) Y`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        kernel = power_of_two_(_exponent(x, y))
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


def gaussian_gram(x: Tensor) -> Tensor:
    """κ(x, x), `(…, D, P)` → `(…, D, D)`, float32 at least, with squared distances in float64.

    In float32, rows far from the origin would make the matrix indefinite, and the solver would fail.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(at_least_float32(x))
        if torch.compiler.is_compiling():
            return gaussian_kernel(x.double(), x.double()).to(x.dtype)
        return _GaussianGram.apply(x)


class _GaussianGram(torch.autograd.Function):
    """`E = κ(X, X)`. For the incoming gradient G, with `F = (G + Gᵀ) ∘ E`, `∂X = F X − diag(F 1) X`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        exact = x.double()
        gram = power_of_two_(_exponent(exact, exact).to(x.dtype))
        ctx.save_for_backward(x, gram)
        return gram

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, gram = ctx.saved_tensors
        weights = (grad + grad.mT).mul_(gram)
        return (weights @ x).addcmul_(weights.sum(dim=-1, keepdim=True), x, value=-1)


def power_of_two_(exponent: Tensor) -> Tensor:
    """2^min(exponent, 0), in place."""
    return exponent.clamp_(max=0).exp2_()


def _exponent(x: Tensor, y: Tensor) -> Tensor:
    """−‖x' − y'‖² / 2 up to rounding, float32 at least."""
    left, right = features(x, TO_BASE_TWO), features(y, TO_BASE_TWO, right=True)
    return (left @ right.mT).to(at_least_float32(x))


def features(x: Tensor, scale: float, right: bool = False) -> Tensor:
    """Rows whose product, of left and right ones, is −‖scale x − scale y‖² / 2.

    `(…, N, P)` → `(…, N, P + 2 c)`: the scaled row, minus its half square in c parts, and c ones; the last two change
    places in the right rows. c is 1, or 3 for low precision.
    """
    x = x * scale
    norm = half_square_parts(x)
    ones = torch.ones_like(norm)
    return torch.cat([x, ones, -norm] if right else [x, -norm, ones], dim=-1)


def half_square(x: Tensor) -> Tensor:
    """‖x‖² / 2, `(…, P)` → `(…, 1)`, float32 at least."""
    return x.to(at_least_float32(x)).square().sum(dim=-1, keepdim=True) / 2


def half_square_parts(x: Tensor) -> Tensor:
    """‖x‖² / 2 in the dtype of `x`, `(…, N, P)` → `(…, N, 1)`, or `(…, N, 3)` for low precision, to be summed.

    Three numbers of 8 bits represent one of 24 bits. Only the first has a gradient.
    """
    exact = half_square(x)
    first = exact.to(x.dtype)
    if exact.dtype == x.dtype:
        return first
    rest = (exact - first).detach()
    second = rest.to(x.dtype)
    return torch.cat([first, second, (rest - second).to(x.dtype)], dim=-1)


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of products with `x`: autocast's choice, except for float64."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return x.dtype
    return torch.get_autocast_dtype(device)


def at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
