"""Sums over a Gaussian kernel in Triton: no N × M matrix is written to memory, forward or backward.

A program holds a block of rows of one side and walks over the other side. Sums over a walk that is shared by several
programs are partial, and added in a fixed order afterwards, so results repeat bit for bit.

The exponent of κ is `x_scale y_scale x·y − ‖x_scale x‖²/2 − ‖y_scale y‖²/2`. Inputs are rounded to the precision of the
products first. Products of the rounded numbers and the norms are summed in float32, so the exponent has no error from
cancellation but float32's.

Shapes: B batch, H heads, N and M rows of x and y, P features, V size of a value.
"""

from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from skyformer.ops.kernel import product_dtype

SHORT = 256  # rows of a side with sums that several programs may share
PROGRAMS = 264  # two for each processor of an H100
LEVELS = 1 << 24  # of a random number that drops an entry
_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def gaussian_product(
    x: Tensor,
    y: Tensor,
    value: Tensor,
    x_scale: float = 1.0,
    y_scale: float = 1.0,
    mask: Tensor | None = None,
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
        _sum[(batch * heads * blocks * splits,)](
            *_with_strides(x, y, value, parts),
            *_with_strides(mask, keys),
            heads, n, m, blocks, splits, share, x_scale, y_scale, round(dropout_p * LEVELS),
            **_sizes(width, size, block, step, dtype), HAS_MASK=mask is not None, DROPS=keys is not None, **options,
        )  # fmt: skip
        _add_parts(parts, out, splits)
    return out


@kernel_sum.register_fake
def _(
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
    return _empty(x, (*x.shape[:3], value.shape[-1]), dtype)


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
            _gradient[(batch * heads * blocks * splits,)](
                *_with_strides(own, other, left, right, parts[0], parts[-1]),
                *_with_strides(mask, keys),
                heads, n, m, blocks, splits, share, *scales, round(dropout_p * LEVELS),
                **_sizes(width, size, block, step, dtype), IS_X=is_x,
                HAS_MASK=mask is not None, DROPS=keys is not None, **options,
            )  # fmt: skip
            for part, out in zip(parts, outs, strict=True):
                _add_parts(part, out, splits)
    return grads


@kernel_sum_gradients.register_fake
def _(
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
    step, options = _held_blocks(n, m, max(width, size), dtype)
    splits, share = _splits(batch * heads, n, m, step)
    parts = _parts(grad_short, splits)
    value_parts = grads[2] if is_x else _parts(grads[2], splits)
    with torch.cuda.device_of(x):
        _both_gradients[(batch * heads * splits,)](
            *_with_strides(short, long, left, right, parts, grad_long, value_parts, mask),
            heads, n, m, splits, share, *scales,
            **_sizes(width, size, _power_of_two(n), step, dtype), LONG_VALUE=is_x, HAS_MASK=mask is not None, **options,
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
    """`(B, H, N, size)`; a long one with the heads of a row next to each other, as the layers around have them."""
    batch, heads, n, size = shape
    if n <= SHORT:
        return like.new_empty(shape, dtype=dtype)
    return like.new_empty((batch, n, heads, size), dtype=dtype).transpose(1, 2)


def _empty_gradients(x: Tensor, y: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_y, grad_value = (_empty(tensor, tensor.shape, tensor.dtype) for tensor in (x, y, value))
    return grad_x, grad_y, grad_value


def _parts(out: Tensor, splits: int) -> Tensor:
    """`out`, or where several programs share a sum, memory for the part of each, `(splits * B, H, N, size)`."""
    if splits == 1:
        return out
    return out.new_empty((splits * out.shape[0], *out.shape[1:]), dtype=torch.float32)


def _add_parts(parts: Tensor, out: Tensor, splits: int) -> None:
    if splits > 1:
        _add[(triton.cdiv(out.numel(), 1024),)](parts, out, out.numel(), splits, BLOCK=1024)


def _splits(programs: int, rows: int, others: int, step: int) -> tuple[int, int]:
    """How many programs share the walk over the `others` for a block of rows, and the share of each."""
    steps = triton.cdiv(others, step)
    wanted = PROGRAMS // programs if rows <= SHORT else 1
    share = triton.cdiv(steps, min(max(wanted, 1), steps))
    return triton.cdiv(steps, share), share * step


def _with_strides(*tensors: Tensor | None) -> list[Any]:
    arguments: list[Any] = []
    for tensor in tensors:
        arguments += [tensor, tensor.stride()] if tensor is not None else [None, (0, 0, 0)]
    return arguments


def _sizes(width: int, size: int, block: int, step: int, dtype: torch.dtype) -> dict[str, Any]:
    """The constants of a program: sizes of tensors and of its blocks, and how products are formed."""
    exact = dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest"
    return {
        "WIDTH": width,
        "SIZE": size,
        "WIDTH_BLOCK": _power_of_two(width),
        "SIZE_BLOCK": _power_of_two(size),
        "BLOCK": block,
        "STEP": step,
        "DTYPE": _TYPES[dtype],
        "PRECISION": "ieee" if exact else "tf32",
    }


def _power_of_two(count: int) -> int:
    return max(16, triton.next_power_of_2(count))  # a product's sides are at least 16


def _blocks(n: int, m: int, block: int, step: int) -> tuple[int, int]:
    return min(block, _power_of_two(n)), min(step, _power_of_two(m))


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
    """For float32, whose products have no tensor cores: their operands fill the registers."""
    return *_blocks(n, m, 64 if width <= 64 else 32, 32), {"num_warps": 4 if width <= 32 else 8, "num_stages": 1}


def _is_held(short: int, width: int, dtype: torch.dtype) -> bool:
    """Return whether a program can hold all rows of the short side, and sums for them, in 100 KB of shared memory."""
    if dtype == torch.float32:
        return short <= 128 and width <= 32
    return short <= SHORT and width <= 64 and _power_of_two(short) * _power_of_two(width) <= 128 * 64


def _held_blocks(n: int, m: int, width: int, dtype: torch.dtype) -> tuple[int, dict[str, int]]:
    """Rows of a step along the long side, and options of the compiler."""
    if dtype == torch.float32:
        return 16, {"num_warps": 8, "num_stages": 1}
    options = {"num_warps": 8 if n > 64 else 4, "num_stages": 2}
    if 64 < n <= 128 and width <= 32:
        options["maxnreg"] = 128  # two programs on a processor
    return min(64 if n <= 128 else 32, _power_of_two(m)), options


@triton.jit
def _base(pointer, strides, b, h):
    return pointer + b.to(tl.int64) * strides[0] + h.to(tl.int64) * strides[1]


@triton.jit
def _load(base, strides, rows, kept, SIZE: tl.constexpr, SIZE_BLOCK: tl.constexpr, DTYPE: tl.constexpr):
    """Rows `(rows, SIZE_BLOCK)` of a matrix, as they go into products; zeros where not `kept`."""
    columns = tl.arange(0, SIZE_BLOCK)
    addresses = base + rows[:, None] * strides[2] + columns[None, :] * strides[3]
    return tl.load(addresses, mask=kept[:, None] & (columns < SIZE)[None, :], other=0.0).to(DTYPE)


@triton.jit
def _store(tile, base, strides, rows, kept, SIZE: tl.constexpr, SIZE_BLOCK: tl.constexpr):
    columns = tl.arange(0, SIZE_BLOCK)
    addresses = base + rows[:, None] * strides[2] + columns[None, :] * strides[3]
    tl.store(addresses, tile.to(base.dtype.element_ty), mask=kept[:, None] & (columns < SIZE)[None, :])


@triton.jit
def _truncated(tile, PRECISION: tl.constexpr):
    """The numbers that a TF32 product sees, so that norms are those of the same numbers."""
    if PRECISION == "tf32":
        tile = (tile.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    return tile


@triton.jit
def _half_square(tile, scale):
    """‖scale row‖² / 2 in units of log 2."""
    tile = tile.to(tl.float32)
    return tl.sum(tile * tile, 1) * (0.5 * 1.4426950408889634 * scale * scale)


@triton.jit
def _kernel(rows, others, row_norms, other_norms, factor, PRECISION: tl.constexpr):
    """κ for a block of rows and one of the other side, float32."""
    products = tl.dot(rows, tl.trans(others), input_precision=PRECISION)
    exponent = products * factor - row_norms[:, None] - other_norms[None, :]
    return tl.exp2(tl.minimum(exponent, 0.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def _dropped(kernel, keys, columns, dropped):
    """`kernel` with entries dropped: 24 random bits from an entry's row key and column decide.

    `keys` and `columns` broadcast to the entries. The bits are those of a mixing function of 64 bits of key, so both
    passes find the same ones in any order.
    """
    bits = keys.to(tl.uint32) + columns.to(tl.uint32) * 0x9E3779B9
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D
    bits = (bits ^ (bits >> 15) ^ (keys >> 32).to(tl.uint32)) * 0x846CA68B
    return tl.where((bits >> 8).to(tl.int32) < dropped, 0.0, kernel)


@triton.jit
def _kept_scale(dropped):
    """What makes up for the dropped entries; sums are multiplied by it at their end."""
    return 16777216.0 / (16777216 - dropped)


@triton.jit(do_not_specialize=["heads", "n", "m", "blocks", "splits", "share", "dropped"])
def _sum(
    X, x_strides, Y, y_strides, V, v_strides, OUT, out_strides, MASK, mask_strides, KEYS, key_strides,
    heads, n, m, blocks, splits, share, x_scale, y_scale, dropped,
    WIDTH: tl.constexpr, SIZE: tl.constexpr, WIDTH_BLOCK: tl.constexpr, SIZE_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    HAS_MASK: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    """`Σ_j κ(x_i, y_j) v_j` for a block of i, over the program's share of j."""
    program = tl.program_id(0)
    block, split, matrix = program % blocks, program // blocks % splits, program // blocks // splits
    b, h = matrix // heads, matrix % heads
    batch = tl.num_programs(0) // (blocks * splits * heads)
    i = block * BLOCK + tl.arange(0, BLOCK)
    x = _load(_base(X, x_strides, b, h), x_strides, i, i < n, WIDTH, WIDTH_BLOCK, DTYPE)
    x = _truncated(x, PRECISION)
    x_norms = _half_square(x, x_scale)
    y_base, v_base = _base(Y, y_strides, b, h), _base(V, v_strides, b, h)
    if DROPS:
        keys = tl.load(_base(KEYS, key_strides, b, h) + i * key_strides[2], mask=i < n, other=0)
    out = tl.zeros((BLOCK, SIZE_BLOCK), tl.float32)
    first = split * share
    for start in range(first, tl.minimum(first + share, m), STEP):
        j = start + tl.arange(0, STEP)
        kept = j < m
        if HAS_MASK:
            kept = tl.load(MASK + b.to(tl.int64) * mask_strides[0] + j * mask_strides[1], mask=kept, other=0) != 0
        y = _truncated(_load(y_base, y_strides, j, kept, WIDTH, WIDTH_BLOCK, DTYPE), PRECISION)
        v = _load(v_base, v_strides, j, kept, SIZE, SIZE_BLOCK, DTYPE)
        kernel = _kernel(x, y, x_norms, _half_square(y, y_scale), x_scale * y_scale * 1.4426950408889634, PRECISION)
        if DROPS:
            kernel = _dropped(kernel, keys[:, None], j[None, :], dropped)
        out += tl.dot(kernel.to(DTYPE), v, input_precision=PRECISION)
    if DROPS:
        out *= _kept_scale(dropped)
    _store(out, _base(OUT, out_strides, split * batch + b, h), out_strides, i, i < n, SIZE, SIZE_BLOCK)


@triton.jit(do_not_specialize=["heads", "n", "m", "blocks", "splits", "share", "dropped"])
def _gradient(
    X, x_strides, Y, y_strides, A, a_strides, B, b_strides, DX, dx_strides, DV, dv_strides,
    MASK, mask_strides, KEYS, key_strides,
    heads, n, m, blocks, splits, share, x_scale, y_scale, dropped,
    WIDTH: tl.constexpr, SIZE: tl.constexpr, WIDTH_BLOCK: tl.constexpr, SIZE_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr, IS_X: tl.constexpr,
    HAS_MASK: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    """`Σ_j F_ij (y_j − x_i)` for a block of i, with `F_ij = (a_i·b_j) κ(x_i, y_j)`, scales left out.

    If not `IS_X`, the sides have changed places: x stands for y, A for its values, and B for the incoming gradient.
    Then `DV_i = Σ_j κ(x_i, y_j) b_j` too. Mask and columns of the random bits belong to the true y.
    """
    program = tl.program_id(0)
    block, split, matrix = program % blocks, program // blocks % splits, program // blocks // splits
    b, h = matrix // heads, matrix % heads
    batch = tl.num_programs(0) // (blocks * splits * heads)
    i = block * BLOCK + tl.arange(0, BLOCK)
    mask_base = MASK
    if HAS_MASK:
        mask_base += b.to(tl.int64) * mask_strides[0]
    kept = i < n
    if HAS_MASK and not IS_X:
        kept = tl.load(mask_base + i * mask_strides[1], mask=kept, other=0) != 0
    x = _load(_base(X, x_strides, b, h), x_strides, i, kept, WIDTH, WIDTH_BLOCK, DTYPE)
    x = _truncated(x, PRECISION)
    left = _load(_base(A, a_strides, b, h), a_strides, i, kept, SIZE, SIZE_BLOCK, DTYPE)
    x_norms = _half_square(x, x_scale)
    y_base, right_base = _base(Y, y_strides, b, h), _base(B, b_strides, b, h)
    if DROPS:
        key_base = _base(KEYS, key_strides, b, h)
        if IS_X:
            keys = tl.load(key_base + i * key_strides[2], mask=i < n, other=0)
    dx = tl.zeros((BLOCK, WIDTH_BLOCK), tl.float32)
    sums = tl.zeros((BLOCK,), tl.float32)
    dv = tl.zeros((BLOCK, SIZE_BLOCK), tl.float32)
    first = split * share
    for start in range(first, tl.minimum(first + share, m), STEP):
        j = start + tl.arange(0, STEP)
        taken = j < m
        if HAS_MASK and IS_X:
            taken = tl.load(mask_base + j * mask_strides[1], mask=taken, other=0) != 0
        y = _truncated(_load(y_base, y_strides, j, taken, WIDTH, WIDTH_BLOCK, DTYPE), PRECISION)
        right = _load(right_base, b_strides, j, taken, SIZE, SIZE_BLOCK, DTYPE)
        kernel = _kernel(x, y, x_norms, _half_square(y, y_scale), x_scale * y_scale * 1.4426950408889634, PRECISION)
        if DROPS:
            if IS_X:
                kernel = _dropped(kernel, keys[:, None], j[None, :], dropped)
            else:
                other_keys = tl.load(key_base + j * key_strides[2], mask=taken, other=0)
                kernel = _dropped(kernel, other_keys[None, :], i[:, None], dropped)
        weights = tl.dot(left, tl.trans(right), input_precision=PRECISION) * kernel
        weights = _truncated(weights.to(DTYPE), PRECISION)
        dx += tl.dot(weights, y, input_precision=PRECISION)
        sums += tl.sum(weights.to(tl.float32), 1)  # of the rounded weights: what they are off by cancels
        if not IS_X:
            dv += tl.dot(kernel.to(DTYPE), right, input_precision=PRECISION)
    if DROPS:
        dx, sums, dv = dx * _kept_scale(dropped), sums * _kept_scale(dropped), dv * _kept_scale(dropped)
    dx = dx * (x_scale * y_scale) - x.to(tl.float32) * (sums * (x_scale * x_scale))[:, None]
    _store(dx, _base(DX, dx_strides, split * batch + b, h), dx_strides, i, i < n, WIDTH, WIDTH_BLOCK)
    if not IS_X:
        dv = tl.where(kept[:, None], dv, 0.0)
        _store(dv, _base(DV, dv_strides, split * batch + b, h), dv_strides, i, i < n, SIZE, SIZE_BLOCK)


@triton.jit(do_not_specialize=["heads", "n", "m", "splits", "share"])
def _both_gradients(
    S, s_strides, L, l_strides, A, a_strides, B, b_strides, DS, ds_strides, DL, dl_strides, DV, dv_strides,
    MASK, mask_strides,
    heads, n, m, splits, share, s_scale, l_scale,
    WIDTH: tl.constexpr, SIZE: tl.constexpr, WIDTH_BLOCK: tl.constexpr, SIZE_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr, LONG_VALUE: tl.constexpr,
    HAS_MASK: tl.constexpr,
):  # fmt: skip
    """The gradients of `_gradient` for a short side, which is one block, and a share of the long one.

    A belongs to the short side and B to the long one. `DV` is `Σ_i κ(s_i, l_j) a_i` if `LONG_VALUE`, else
    `Σ_j κ(s_i, l_j) b_j`. The mask is one of the long side.
    """
    program = tl.program_id(0)
    split, matrix = program % splits, program // splits
    b, h = matrix // heads, matrix % heads
    batch = tl.num_programs(0) // (splits * heads)
    i = tl.arange(0, BLOCK)
    short = _load(_base(S, s_strides, b, h), s_strides, i, i < n, WIDTH, WIDTH_BLOCK, DTYPE)
    short = _truncated(short, PRECISION)
    left = _load(_base(A, a_strides, b, h), a_strides, i, i < n, SIZE, SIZE_BLOCK, DTYPE)
    norms = _half_square(short, s_scale)
    long_base, right_base = _base(L, l_strides, b, h), _base(B, b_strides, b, h)
    dl_base, dv_base = _base(DL, dl_strides, b, h), _base(DV, dv_strides, b, h)
    ds = tl.zeros((BLOCK, WIDTH_BLOCK), tl.float32)
    sums = tl.zeros((BLOCK,), tl.float32)
    dv = tl.zeros((BLOCK, SIZE_BLOCK), tl.float32)
    ones = tl.full((BLOCK, 16), 1.0, DTYPE)
    factor = s_scale * l_scale
    first = split * share
    for start in range(first, tl.minimum(first + share, m), STEP):
        j = start + tl.arange(0, STEP)
        kept = j < m
        if HAS_MASK:
            kept = tl.load(MASK + b.to(tl.int64) * mask_strides[0] + j * mask_strides[1], mask=kept, other=0) != 0
        long = _truncated(_load(long_base, l_strides, j, kept, WIDTH, WIDTH_BLOCK, DTYPE), PRECISION)
        right = _load(right_base, b_strides, j, kept, SIZE, SIZE_BLOCK, DTYPE)
        kernel = _kernel(short, long, norms, _half_square(long, l_scale), factor * 1.4426950408889634, PRECISION)
        weights = tl.dot(left, tl.trans(right), input_precision=PRECISION) * kernel
        weights = _truncated(weights.to(DTYPE), PRECISION)
        kernel = kernel.to(DTYPE)
        ds += tl.dot(weights, long, input_precision=PRECISION)
        sums += tl.sum(weights.to(tl.float32), 1)
        if LONG_VALUE:
            long_dv = tl.dot(tl.trans(kernel), left, input_precision=PRECISION)
            if HAS_MASK:
                long_dv = tl.where(kept[:, None], long_dv, 0.0)
            _store(long_dv, dv_base, dv_strides, j, j < m, SIZE, SIZE_BLOCK)
        else:
            dv += tl.dot(kernel, right, input_precision=PRECISION)
        weights = tl.trans(weights)
        dl = tl.dot(weights, short, input_precision=PRECISION) * factor
        long_sums = tl.sum(tl.dot(weights, ones, input_precision=PRECISION), 1)  # cheaper than a sum across warps
        dl -= long.to(tl.float32) * (long_sums * (l_scale * l_scale / 16))[:, None]
        _store(dl, dl_base, dl_strides, j, j < m, WIDTH, WIDTH_BLOCK)
    ds = ds * factor - short.to(tl.float32) * (sums * (s_scale * s_scale))[:, None]
    _store(ds, _base(DS, ds_strides, split * batch + b, h), ds_strides, i, i < n, WIDTH, WIDTH_BLOCK)
    if not LONG_VALUE:
        _store(dv, _base(DV, dv_strides, split * batch + b, h), dv_strides, i, i < n, SIZE, SIZE_BLOCK)


@triton.jit(do_not_specialize=["count", "splits"])
def _add(PARTS, OUT, count, splits, BLOCK: tl.constexpr):
    """`OUT = Σ PARTS`, `(splits, count)` → `(count,)`."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(splits):
        total += tl.load(PARTS + i, mask=i < count, other=0.0)
        PARTS += count
    tl.store(OUT + i, total.to(OUT.dtype.element_ty), mask=i < count)
