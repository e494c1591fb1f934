"""The landmark system of Nyström attention in Triton, one program a head: kernel matrix, elimination and solution.

Torch takes some twenty launches for that. Its factorisations alone cost as much as the products with all tokens.

Shapes: B batch, H heads, D landmarks, P features, V size of a value.
"""

from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from skyformer.ops.triton_kernels import power_of_two, with_strides
from skyformer.ops.triton_programs import load_tile, matrix_pointer, store_tile, taking_part


@torch.library.custom_op("skyformer::landmark_solution", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def landmark_solution(landmarks: Tensor, right: Tensor, mask: Tensor | None, ridge: float) -> Tensor:
    """`(κ(W, W) + γI)⁻¹ R` in float32, `(B, H, D, P)`, `(B, H, D, V)` → `(B, H, D, V)`; D at most 128.

    Landmarks where `mask`, `(B, D)` bool, is False take no part, and have zeros in the result. Gradients have the dtype
    of their tensor.
    """
    (batch, heads, n, width), size = landmarks.shape, right.shape[-1]
    solution = right.new_empty(right.shape, dtype=torch.float32)
    options = _options(n, mask)
    if options["num_warps"] == 8:
        options["maxnreg"] = 128  # two programs on a multiprocessor
    with torch.cuda.device_of(landmarks):
        _solve[(batch * heads,)](
            *with_strides(landmarks, right, mask, solution),
            heads, n, width, ridge, SIZE=size, SIZE_BLOCK=power_of_two(size), **options,
        )  # fmt: skip
    return solution


@landmark_solution.register_fake
def _(landmarks: Tensor, right: Tensor, mask: Tensor | None, ridge: float) -> Tensor:
    return right.new_empty(right.shape, dtype=torch.float32)


@torch.library.custom_op("skyformer::landmark_gradient", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def landmark_gradient(landmarks: Tensor, solution: Tensor, grad_right: Tensor, mask: Tensor | None) -> Tensor:
    """The gradient for W: with `F = −(∂R Zᵀ + Z ∂Rᵀ) ∘ κ(W, W)`, `∂W = F W − diag(F 1) W`."""
    (batch, heads, n, width), size = landmarks.shape, solution.shape[-1]
    grad = landmarks.new_empty(landmarks.shape)
    with torch.cuda.device_of(landmarks):
        _gradient[(batch * heads,)](
            *with_strides(landmarks, solution, grad_right, mask, grad),
            heads, n, width, size, **_options(n, mask),
        )  # fmt: skip
    return grad


@landmark_gradient.register_fake
def _(landmarks: Tensor, solution: Tensor, grad_right: Tensor, mask: Tensor | None) -> Tensor:
    return landmarks.new_empty(landmarks.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    landmarks, right, mask, ctx.ridge = inputs
    ctx.dtype = right.dtype
    ctx.save_for_backward(landmarks, mask, output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    landmarks, mask, solution = ctx.saved_tensors
    grad_right = landmark_solution(landmarks, grad, mask, ctx.ridge)  # the system is symmetric
    return landmark_gradient(landmarks, solution, grad_right, mask), grad_right.to(ctx.dtype), None, None


landmark_solution.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.skyformer.landmark_solution)
def _operations(landmarks: torch.Size, right: torch.Size, *args: Any, **kwargs: Any) -> int:
    # As by Cholesky: products for the kernel, the factor, two triangular solves.
    n = landmarks[-2]
    return prod(landmarks[:-2]) * n * n * (2 * landmarks[-1] + n // 3 + 2 * right[-1])


@register_flop_formula(torch.ops.skyformer.landmark_gradient)
def _operations_of_gradient(landmarks: torch.Size, solution: torch.Size, *args: Any, **kwargs: Any) -> int:
    n = landmarks[-2]
    return prod(landmarks[:-2]) * n * n * (4 * landmarks[-1] + 2 * solution[-1])


def _options(n: int, mask: Tensor | None) -> dict[str, Any]:
    block = power_of_two(n)
    return {"BLOCK": block, "HAS_MASK": mask is not None, "num_warps": 8 if block > 64 else 4, "num_stages": 1}


@triton.jit
def _column(base, strides, i, p, kept):
    return tl.load(base + i * strides[2] + p * strides[3], mask=kept, other=0.0).to(tl.float32)


@triton.jit
def _zeros(BLOCK: tl.constexpr):
    """`(BLOCK, BLOCK)`, as a product of zeros: then a thread holds squares of a matrix, not a piece of a column, which
    would need a register for each of its rows.
    """
    return tl.dot(tl.zeros((BLOCK, 16), tl.float32), tl.zeros((16, BLOCK), tl.float32), input_precision="ieee")


@triton.jit
def _gram(base, strides, i, kept, width, BLOCK: tl.constexpr):
    """`κ(w_i, w_j)`, exact to float32 since it adds squared differences; zero where a landmark takes no part."""
    distances = _zeros(BLOCK)
    for p in range(width):
        column = _column(base, strides, i, p, kept)
        differences = column[:, None] - column[None, :]
        distances += differences * differences
    kernel = tl.exp2(distances * (-0.5 * 1.4426950408889634))
    return tl.where(kept[:, None] & kept[None, :], kernel, 0.0)


@triton.jit(do_not_specialize=["heads", "n", "width"])
def _solve(
    W, w_strides, R, r_strides, MASK, mask_strides, Z, z_strides, heads, n, width, ridge,
    SIZE: tl.constexpr, SIZE_BLOCK: tl.constexpr, BLOCK: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """Gauss–Jordan elimination, which needs no pivots for a definite matrix.

    Step k subtracts `a_ik a_kj / a_kk` from A, and `a_ik r_k / a_kk` from R. It replaces row and column k by themselves
    divided by `a_kk`, so A stays symmetric. With `a_kk - 1` in place of `a_kk` in row k the subtraction does that too.
    (`a_kk` itself becomes another number, which no later step reads.) R becomes `A⁻¹ R`, several times as exact as by
    the inverse or its Cholesky factor.
    """
    matrix = tl.program_id(0)
    b, h = matrix // heads, matrix % heads
    i = tl.arange(0, BLOCK)
    kept = taking_part(MASK, mask_strides, b, i, n, HAS_MASK)
    system = _gram(matrix_pointer(W, w_strides, b, h), w_strides, i, kept, width, BLOCK)
    system = tl.where(i[:, None] == i[None, :], 1.0 + ridge, system)
    right = load_tile(matrix_pointer(R, r_strides, b, h), r_strides, i, kept, SIZE, SIZE_BLOCK, tl.float32)
    for k in range(n):
        row = tl.sum(tl.where(i[:, None] == k, system, 0.0), 0)
        pivot = tl.sum(tl.where(i == k, row, 0.0), 0)
        row = tl.where(i == k, row - 1.0, row)
        factors = row / pivot
        right -= factors[:, None] * tl.sum(tl.where(i[:, None] == k, right, 0.0), 0)[None, :]
        system -= factors[:, None] * row[None, :]
    store_tile(right, matrix_pointer(Z, z_strides, b, h), z_strides, i, i < n, SIZE, SIZE_BLOCK)


@triton.jit(do_not_specialize=["heads", "n", "width", "size"])
def _gradient(
    W, w_strides, Z, z_strides, DR, dr_strides, MASK, mask_strides, DW, dw_strides, heads, n, width, size,
    BLOCK: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    matrix = tl.program_id(0)
    b, h = matrix // heads, matrix % heads
    i = tl.arange(0, BLOCK)
    kept = taking_part(MASK, mask_strides, b, i, n, HAS_MASK)
    z_base, dr_base = matrix_pointer(Z, z_strides, b, h), matrix_pointer(DR, dr_strides, b, h)
    products = _zeros(BLOCK)
    for p in range(size):
        z, dr = _column(z_base, z_strides, i, p, kept), _column(dr_base, dr_strides, i, p, kept)
        products += dr[:, None] * z[None, :] + z[:, None] * dr[None, :]
    w_base, dw_base = matrix_pointer(W, w_strides, b, h), matrix_pointer(DW, dw_strides, b, h)
    weights = -products * _gram(w_base, w_strides, i, kept, width, BLOCK)
    for p in range(width):
        column = _column(w_base, w_strides, i, p, kept)
        grad = tl.sum(weights * (column[:, None] - column[None, :]), 0)
        tl.store(dw_base + i * dw_strides[2] + p * dw_strides[3], grad.to(DW.dtype.element_ty), mask=i < n)
