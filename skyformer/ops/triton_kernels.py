"""Sums over a Gaussian kernel in Triton: no N × M matrix is written to memory, forward or backward.

A program holds a block of rows of one side and walks over the other side. Sums over a walk that is shared by several
programs are partial, and added in a fixed order afterwards, so results repeat bit for bit.

The exponent of κ is `x_scale y_scale x·y − ‖x_scale x‖²/2 − ‖y_scale y‖²/2`. Inputs are rounded to the precision of the
products first. Products of the rounded numbers and the norms are summed in float32, so the exponent has no error from
cancellation but float32's.

Shapes: B batch, H heads, N and M rows of x and y, P features, V size of a value.
"""

from functools import cache
from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from skyformer.ops.kernel import product_dtype
from skyformer.ops.triton_programs import add_parts, both_gradients, one_gradient, weighted_sum

SHORT = 256  # rows of a side with sums that several programs may share
PROGRAMS = 264  # two for each multiprocessor of an H100
LARGE_MEMORY = 128 * 1024  # bytes of shared memory: A100 and H100 have more, RTX 30 to 50 have 99 KB
LEVELS = 1 << 24  # of a random number that drops an entry
_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def gaussian_product(
    x: Tensor, y: Tensor, value: Tensor, x_scale: float = 1.0, y_scale: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """`κ(x_scale x, y_scale y) value`, `(…, N, P)`, `(…, M, P)`, `(…, M, V)` → `(…, N, V)`.

    With `mask`, `(B, M)` bool for `(B, H, M, P)`, rows of y where it is False take no part.

    Fastest where N or M is at most 256. Any strides. float32, float16 or bfloat16; under autocast the products and the
    result are in the low precision, whatever the inputs. Gradients have the dtype of their tensor.
    """
    flat = (tensor if tensor.dim() == 4 else tensor.reshape(-1, 1, *tensor.shape[-2:]) for tensor in (x, y, value))
    out = kernel_sum(*flat, mask, None, x_scale, y_scale, 0.0, product_dtype(x))
    return out.reshape(*x.shape[:-1], value.shape[-1])


def gaussian_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, dropout_p: float
) -> Tensor:
    """`Σ_j κ(scale q_i, scale k_j) v_j`, `(B, H, L, P)`, `(B, H, S, P)`, `(B, H, S, V)` → `(B, H, L, V)`.

    Keys where `mask`, `(B, S)` bool, is False take no part. Entries of κ are dropped with probability `dropout_p`,
    rounded to a multiple of 2⁻²⁴; torch's generator of the device decides which. Types as in `gaussian_product`.
    """
    keys = None
    if dropout_p > 0:
        keys = torch.randint(2**63 - 1, query.shape[:3], dtype=torch.int64, device=query.device)
    return kernel_sum(query, key, value, mask, keys, scale, scale, dropout_p, product_dtype(query))


# Layouts of the results depend on shapes alone, so that the compiler may choose the inputs' strides.
@torch.library.custom_op("skyformer::kernel_sum", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def kernel_sum(
    x: Tensor,
    y: Tensor,
    value: Tensor,
    mask: Tensor | None,
    keys: Tensor | None,
    x_scale: float,
    y_scale: float,
    dropout_p: float,
    dtype: torch.dtype,
) -> Tensor:
    """`κ(x_scale x, y_scale y) value` for `(B, H, N, P)`, `(B, H, M, P)`, `(B, H, M, V)`, in `dtype`.

    Rows of y where `mask`, `(B, M)` bool, is False take no part. With `keys`, `(B, H, N)` of random int64, entries of κ
    are dropped with probability `dropout_p`, and the others divided by `1 - dropout_p`.
    """
    (batch, heads, n, width), m, size = x.shape, y.shape[2], value.shape[-1]
    block, step, options = _forward_blocks(n, m, max(width, size), dtype)
    blocks = triton.cdiv(n, block)
    splits, share = _splits(batch * heads * blocks, n, m, step)
    out = _empty(x, (batch, heads, n, size), dtype)
    parts = _parts(out, splits)
    with torch.cuda.device_of(x):
        weighted_sum[(batch * heads * blocks * splits,)](
            *with_strides(x, y, value, parts),
            *with_strides(mask, keys),
            heads, n, m, blocks, splits, share, x_scale, y_scale, round(dropout_p * LEVELS),
            **_sizes(width, size, block, step, dtype), HAS_MASK=mask is not None, DROPS=keys is not None, **options,
        )  # fmt: skip
        _add_parts(parts, out, splits)
    return out


@kernel_sum.register_fake
def _(x: Tensor, y: Tensor, value: Tensor, *settings: Any) -> Tensor:
    return _empty(x, (*x.shape[:3], value.shape[-1]), settings[-1])


@torch.library.custom_op("skyformer::kernel_sum_gradients", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def kernel_sum_gradients(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    value: Tensor,
    mask: Tensor | None,
    keys: Tensor | None,
    x_scale: float,
    y_scale: float,
    dropout_p: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `kernel_sum` for x, y and value, in their dtypes, given that of its result.

    With `F = (G Vᵀ) ∘ E` for `E = κ(X, Y)`, at scales of one `∂X = F Y − diag(F 1) X`, `∂Y = Fᵀ X − diag(Fᵀ 1) Y` and
    `∂V = Eᵀ G`.
    """
    grads = _empty_gradients(x, y, value)
    short, width = min(x.shape[2], y.shape[2]), max(x.shape[-1], value.shape[-1])
    masks_long = mask is None or x.shape[2] <= y.shape[2]
    if keys is None and masks_long and _is_held(short, width, dtype):
        _short_and_long(grads, grad, x, y, value, mask, x_scale, y_scale, dtype)
        return grads
    with torch.cuda.device_of(x):
        for is_x, own, other, left, right, outs in (
            (True, x, y, grad, value, grads[:1]),
            (False, y, x, value, grad, grads[1:]),
        ):
            (batch, heads, n, width), m, size = own.shape, other.shape[2], value.shape[-1]
            block, step, options = _backward_blocks(n, m, max(width, size), dtype)
            blocks = triton.cdiv(n, block)
            splits, share = _splits(batch * heads * blocks, n, m, step)
            parts = [_parts(out, splits) for out in outs]
            scales = (x_scale, y_scale) if is_x else (y_scale, x_scale)
            one_gradient[(batch * heads * blocks * splits,)](
                *with_strides(own, other, left, right, parts[0], parts[-1]),
                *with_strides(mask, keys),
                heads, n, m, blocks, splits, share, *scales, round(dropout_p * LEVELS),
                **_sizes(width, size, block, step, dtype), IS_X=is_x,
                HAS_MASK=mask is not None, DROPS=keys is not None, **options,
            )  # fmt: skip
            for part, out in zip(parts, outs, strict=True):
                _add_parts(part, out, splits)
    return grads


@kernel_sum_gradients.register_fake
def _(grad: Tensor, x: Tensor, y: Tensor, value: Tensor, *settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_gradients(x, y, value)


def _short_and_long(
    grads: tuple[Tensor, Tensor, Tensor],
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    value: Tensor,
    mask: Tensor | None,
    x_scale: float,
    y_scale: float,
    dtype: torch.dtype,
) -> None:
    """Fill `grads` by programs that hold all rows of the short side, in one pass over the long side."""
    is_x = x.shape[2] <= y.shape[2]  # the short side
    if is_x:
        short, long, left, right, scales = x, y, grad, value, (x_scale, y_scale)
        grad_short, grad_long, _ = grads
    else:
        short, long, left, right, scales = y, x, value, grad, (y_scale, x_scale)
        grad_long, grad_short, _ = grads
    (batch, heads, n, width), m, size = short.shape, long.shape[2], value.shape[-1]
    step, options = _held_blocks(n, m, max(width, size), dtype, shared_memory(x.device))
    splits, share = _splits(batch * heads, n, m, step)
    parts = _parts(grad_short, splits)
    value_parts = grads[2] if is_x else _parts(grads[2], splits)
    with torch.cuda.device_of(x):
        both_gradients[(batch * heads * splits,)](
            *with_strides(short, long, left, right, parts, grad_long, value_parts, mask),
            heads, n, m, splits, share, *scales,
            **_sizes(width, size, power_of_two(n), step, dtype), LONG_VALUE=is_x, HAS_MASK=mask is not None, **options,
        )  # fmt: skip
        _add_parts(parts, grad_short, splits)
        if not is_x:
            _add_parts(value_parts, grads[2], splits)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.settings = inputs[5:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *kernel_sum_gradients(grad, *ctx.saved_tensors, *ctx.settings), *[None] * 6


kernel_sum.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.skyformer.kernel_sum)
def _operations(x: torch.Size, y: torch.Size, value: torch.Size, *args: Any, **kwargs: Any) -> int:
    return 2 * prod(x[:-1]) * y[-2] * (x[-1] + value[-1])


@register_flop_formula(torch.ops.skyformer.kernel_sum_gradients)
def _operations_of_gradients(
    grad: torch.Size, x: torch.Size, y: torch.Size, value: torch.Size, *args: Any, **kwargs: Any
) -> int:
    # Recompute the products, then the gradients for value, weights, x and y.
    return 2 * prod(x[:-1]) * y[-2] * (3 * x[-1] + 2 * value[-1])


def _empty(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """`(B, H, N, size)` with the heads of a row next to each other, as the layers around have them.

    A layout that depended on N would make torch.compile compile again for other N.
    """
    batch, heads, n, size = shape
    return like.new_empty((batch, n, heads, size), dtype=dtype).transpose(1, 2)


def _empty_gradients(x: Tensor, y: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_y, grad_value = (_empty(tensor, tensor.shape, tensor.dtype) for tensor in (x, y, value))
    return grad_x, grad_y, grad_value


def _parts(out: Tensor, splits: int) -> Tensor:
    """`out`, or where several programs share a sum, memory for the part of each, `(splits * B, H, N, size)`.

    Parts have the layout of `out`, so that `add_parts` can add them as vectors.
    """
    if splits == 1:
        return out
    return _empty(out, (splits * out.shape[0], *out.shape[1:]), torch.float32)


def _add_parts(parts: Tensor, out: Tensor, splits: int) -> None:
    if splits > 1:
        add_parts[(triton.cdiv(out.numel(), 1024),)](parts, out, out.numel(), splits, BLOCK=1024)


def _splits(programs: int, rows: int, others: int, step: int) -> tuple[int, int]:
    """How many programs share the walk over the `others` for a block of rows, and the share of each."""
    steps = triton.cdiv(others, step)
    wanted = PROGRAMS // programs if rows <= SHORT else 1
    share = triton.cdiv(steps, min(max(wanted, 1), steps))
    return triton.cdiv(steps, share), share * step


def with_strides(*tensors: Tensor | None) -> list[Any]:
    arguments: list[Any] = []
    for tensor in tensors:
        arguments += [tensor, tensor.stride()] if tensor is not None else [None, (0, 0, 0)]
    return arguments


def _sizes(width: int, size: int, block: int, step: int, dtype: torch.dtype) -> dict[str, Any]:
    """The constants of a program: sizes of tensors and of its blocks, and how products are formed."""
    exact = dtype != torch.float32 or not allows_tf32()
    return {
        "WIDTH": width,
        "SIZE": size,
        "WIDTH_BLOCK": power_of_two(width),
        "SIZE_BLOCK": power_of_two(size),
        "BLOCK": block,
        "STEP": step,
        "DTYPE": _TYPES[dtype],
        "PRECISION": "ieee" if exact else "tf32",
    }


def allows_tf32() -> bool:
    """Return whether float32 products on CUDA may round their inputs to TF32.

    torch's two settings of this exclude each other: reading the older one raises after a change of the newer one.
    """
    precision = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    return precision == "tf32" if precision else torch.get_float32_matmul_precision() != "highest"


def power_of_two(count: int) -> int:
    return max(16, triton.next_power_of_2(count))  # a product's sides are at least 16


def _blocks(n: int, m: int, block: int, step: int) -> tuple[int, int]:
    return min(block, power_of_two(n)), min(step, power_of_two(m))


def _forward_blocks(n: int, m: int, width: int, dtype: torch.dtype) -> tuple[int, int, dict[str, int]]:
    """Rows of a program, rows of a step of its walk, and options of the compiler."""
    if dtype == torch.float32:
        return _exact_blocks(n, m, width)
    return *_blocks(n, m, 128, 64), {"num_warps": 4 if width <= 64 else 8, "num_stages": 3 if width <= 64 else 2}


def _backward_blocks(n: int, m: int, width: int, dtype: torch.dtype) -> tuple[int, int, dict[str, int]]:
    if dtype == torch.float32:
        return _exact_blocks(n, m, width)
    return *_blocks(n, m, 128 if width <= 64 else 64, 64), {"num_warps": 8, "num_stages": 2}


def _exact_blocks(n: int, m: int, width: int) -> tuple[int, int, dict[str, int]]:
    """Return `_forward_blocks` for float32, whose products have no tensor cores: their operands fill the registers."""
    return *_blocks(n, m, 64 if width <= 64 else 32, 32), {"num_warps": 4 if width <= 32 else 8, "num_stages": 1}


def _is_held(short: int, width: int, dtype: torch.dtype) -> bool:
    """Return whether a program can hold all rows of the short side, and sums for them, in 100 KB of shared memory."""
    if dtype == torch.float32:
        return short <= 128 and width <= 32
    return short <= SHORT and width <= 64 and power_of_two(short) * power_of_two(width) <= 128 * 64


def _held_blocks(n: int, m: int, width: int, dtype: torch.dtype, memory: int) -> tuple[int, dict[str, int]]:
    """Rows of a step along the long side, and options of the compiler. `memory` is the bytes of shared memory."""
    if dtype == torch.float32:
        return 16, {"num_warps": 8, "num_stages": 1}
    options = {"num_warps": 8 if n > 64 else 4, "num_stages": 2}
    if 64 < n <= 128 and width <= 32:
        options["maxnreg"] = 128  # two programs on a multiprocessor
    step = 64 if n <= 128 else 32
    if memory < LARGE_MEMORY and (n > 128 or (n > 64 and width > 32)):
        step //= 2
    return min(step, power_of_two(m)), options


@cache
def shared_memory(device: torch.device) -> int:
    """Return the bytes of shared memory that a program can have on this device; for Triton's interpreter, no limit."""
    if device.type == "cpu":
        return LARGE_MEMORY
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", LARGE_MEMORY))  # ROCm does not tell
