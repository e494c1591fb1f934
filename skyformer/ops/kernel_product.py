"""The product of a Gaussian kernel with values, without keeping an N × M matrix."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from skyformer.ops import triton_dispatch
from skyformer.ops.kernel import TO_BASE_TWO, features, gaussian_kernel, power_of_two_, product_dtype

ENTRIES_IN_CACHE = 1 << 19  # 2 MB in float32


def gaussian_product(
    x: Tensor, y: Tensor, value: Tensor, x_scale: float = 1.0, y_scale: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """`κ(x_scale x, y_scale y) value`, `(…, N, P)`, `(…, M, P)`, `(…, M, V)` → `(…, N, V)`, in the precision of
    `gaussian_kernel`. With `mask`, `(B, M)` bool for `(B, H, M, P)`, rows of y where it is False take no part.

    It equals `gaussian_kernel(x_scale * x, y_scale * y) @ value`, with fewer passes over the N × M numbers, each in the
    CPU's cache. It stores O(N + M) memory for the backward pass, which recomputes the kernel. On a GPU Triton
    kernels do that, where they can (see `triton_dispatch.has_kernels`). Without them a GPU's compiler fuses the simple
    form itself. An exported program has torch's operators only.
    """
    if triton_dispatch.has_kernels(x, y, value):
        return triton_dispatch.gaussian_product(x, y, value, x_scale, y_scale, mask)
    low, value = product_dtype(x), without_padding(value, mask)
    if triton_dispatch.is_exporting() or (torch.compiler.is_compiling() and x.device.type != "cpu"):
        return gaussian_kernel(x * x_scale, y * y_scale).to(low) @ value.to(low)
    with torch.autocast(x.device.type, enabled=False):
        flat = (tensor.to(low).reshape(-1, *tensor.shape[-2:]).contiguous() for tensor in (x, y, value))
        return _GaussianProduct.apply(*flat, x_scale, y_scale).reshape(*x.shape[:-1], value.shape[-1])


def without_padding(value: Tensor, mask: Tensor | None) -> Tensor:
    """`value`, `(B, H, M, V)`, with zeros where `mask`, `(B, M)`, is False.

    The kernel matrix has no normaliser, so that takes a row out of the sum wholly.
    """
    return value if mask is None else value.masked_fill(~mask[:, None, :, None], 0)


class _GaussianProduct(torch.autograd.Function):
    """`O = E Z` with `E = κ(X, Y)`, as features whose products are the exponents (`kernel.py`)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, value: Tensor, x_scale: float, y_scale: float) -> Tensor:
        left, right = features(x, x_scale * TO_BASE_TWO), features(y, y_scale * TO_BASE_TWO, right=True)
        ctx.save_for_backward(left, right, value)
        ctx.scales = x_scale / TO_BASE_TWO, y_scale / TO_BASE_TWO
        ctx.width = x.shape[-1]
        run = traced_product if torch.compiler.is_compiling() else _product
        return run(left, right, value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        run = traced_gradients if torch.compiler.is_compiling() else _gradients
        left, right, value = ctx.saved_tensors
        grad_x, grad_y, grad_value = run(left, right, value, grad.contiguous(), ctx.width)
        x_scale, y_scale = ctx.scales
        return grad_x * x_scale, grad_y * y_scale, grad_value, None, None


def _product(left: Tensor, right: Tensor, value: Tensor) -> Tensor:
    """`E Z`, E held with the longer of N and M as rows, since products with short rows are slow on a CPU."""
    out = _empty(left, value.shape[-1])
    for part in _parts(left, right):
        torch.bmm(_kernel(left[part], right[part]), value[part], out=out[part])
    return out


def _gradients(left: Tensor, right: Tensor, value: Tensor, grad: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """∂X and ∂Y, of `width` features, and ∂Z, for the incoming gradient G.

    `∂Z = Eᵀ G`. With `F = (G Zᵀ) ∘ E`, `∂X = F Y − diag(F 1) X` and `∂Y = Fᵀ X − diag(Fᵀ 1) Y`, whose row sums come
    with the products, from the features that are one.
    """
    grad_x, grad_y, grad_value = _empty(left, width), _empty(right, width), torch.empty_like(value)
    for part in _parts(left, right):
        kernel = _kernel(left[part], right[part])
        torch.bmm(kernel.mT, grad[part], out=grad_value[part])
        weights = _outer(grad[part], value[part]).mul_(kernel)
        _difference(torch.bmm(weights, right[part]), left[part], width, grad_x[part])
        _difference(torch.bmm(weights.mT, left[part]), right[part], -1, grad_y[part])
    return grad_x, grad_y, grad_value


# Operators of their own, so that torch.compile leaves their loops alone.
traced_product = torch.library.custom_op("skyformer::gaussian_product", _product, mutates_args=())
traced_gradients = torch.library.custom_op("skyformer::gaussian_product_gradients", _gradients, mutates_args=())


@traced_product.register_fake
def _(left: Tensor, right: Tensor, value: Tensor) -> Tensor:
    return _empty(left, value.shape[-1])


@traced_gradients.register_fake
def _(left: Tensor, right: Tensor, value: Tensor, grad: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(left, width), _empty(right, width), torch.empty_like(value)


def _empty(rows: Tensor, width: int) -> Tensor:
    return rows.new_empty((*rows.shape[:-1], width))


def _kernel(left: Tensor, right: Tensor) -> Tensor:
    return power_of_two_(_outer(left, right))


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """`a bᵀ`, in memory with the longer of its axes first."""
    return torch.bmm(a, b.mT) if a.shape[1] >= b.shape[1] else torch.bmm(b, a.mT).mT


def _difference(products: Tensor, own: Tensor, ones: int, out: Tensor) -> None:
    """`F Y − diag(F 1) X` from `products`, F with the other side's features, whose column `ones` is one."""
    width = out.shape[-1]
    torch.addcmul(products[..., :width], products[..., ones, None], own[..., :width], value=-1, out=out)


def _parts(x: Tensor, y: Tensor) -> Iterator[slice]:
    """Yield slices of the first axis: on a CPU, as many matrices as its caches hold; elsewhere all."""
    count, rows = x.shape[:2]
    step = max(1, ENTRIES_IN_CACHE // max(1, rows * y.shape[1])) if x.device.type == "cpu" else max(1, count)
    return (slice(start, start + step) for start in range(0, count, step))
