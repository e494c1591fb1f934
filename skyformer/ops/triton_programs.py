"""The programs of the Triton kernels; `triton_kernels.py` launches them and chooses their blocks.

A tile is a block of rows `(rows, features)` of a matrix of one head. Sums are in float32. A row's place in memory is
counted in 64 bits: where tokens are the first axis of a tensor, rows are far apart.
"""

import triton
import triton.language as tl


@triton.jit
def matrix_pointer(pointer, strides, b, h):
    return pointer + b.to(tl.int64) * strides[0] + h.to(tl.int64) * strides[1]


@triton.jit
def taking_part(MASK, mask_strides, b, rows, n, HAS_MASK: tl.constexpr):
    """Return which of these rows exist and are not masked."""
    kept = rows < n
    if HAS_MASK:
        kept = tl.load(MASK + b.to(tl.int64) * mask_strides[0] + rows * mask_strides[1], mask=kept, other=0) != 0
    return kept


@triton.jit
def load_tile(base, strides, rows, kept, SIZE: tl.constexpr, SIZE_BLOCK: tl.constexpr, DTYPE: tl.constexpr):
    """Rows `(rows, SIZE_BLOCK)` of a matrix, as they go into products; zeros where not `kept`."""
    columns = tl.arange(0, SIZE_BLOCK)
    addresses = base + rows.to(tl.int64)[:, None] * strides[2] + columns[None, :] * strides[3]
    return tl.load(addresses, mask=kept[:, None] & (columns < SIZE)[None, :], other=0.0).to(DTYPE)


@triton.jit
def store_tile(tile, base, strides, rows, kept, SIZE: tl.constexpr, SIZE_BLOCK: tl.constexpr):
    columns = tl.arange(0, SIZE_BLOCK)
    addresses = base + rows.to(tl.int64)[:, None] * strides[2] + columns[None, :] * strides[3]
    tl.store(addresses, tile.to(base.dtype.element_ty), mask=kept[:, None] & (columns < SIZE)[None, :])


@triton.jit
def truncated(tile, PRECISION: tl.constexpr):
    """The numbers that a TF32 product sees, so that norms are those of the same numbers."""
    if PRECISION == "tf32":
        tile = (tile.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    return tile


@triton.jit
def half_square(tile, scale):
    """‖scale row‖² / 2 in units of log 2."""
    tile = tile.to(tl.float32)
    return tl.sum(tile * tile, 1) * (0.5 * 1.4426950408889634 * scale * scale)


@triton.jit
def kernel_block(rows, others, row_norms, other_norms, factor, PRECISION: tl.constexpr):
    """κ for a block of rows and one of the other side, float32."""
    products = tl.dot(rows, tl.trans(others), input_precision=PRECISION)
    exponent = products * factor - row_norms[:, None] - other_norms[None, :]
    return tl.exp2(tl.minimum(exponent, 0.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def dropped_entries(kernel, keys, columns, dropped):
    """`kernel` with entries dropped: 24 random bits from an entry's row key and column decide.

    `keys` and `columns` broadcast to the entries. The bits are those of a mixing function of 64 bits of key, so both
    passes find the same ones in any order.
    """
    bits = keys.to(tl.uint32) + columns.to(tl.uint32) * 0x9E3779B9
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D
    bits = (bits ^ (bits >> 15) ^ (keys >> 32).to(tl.uint32)) * 0x846CA68B
    return tl.where((bits >> 8).to(tl.int32) < dropped, 0.0, kernel)


@triton.jit
def kept_scale(dropped):
    """Return the factor that compensates for dropped entries; it multiplies the final sums."""
    return 16777216.0 / (16777216 - dropped)


@triton.jit(do_not_specialize=["heads", "n", "m", "blocks", "splits", "share", "dropped"])
def weighted_sum(
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
    x = load_tile(matrix_pointer(X, x_strides, b, h), x_strides, i, i < n, WIDTH, WIDTH_BLOCK, DTYPE)
    x = truncated(x, PRECISION)
    x_norms = half_square(x, x_scale)
    y_base, v_base = matrix_pointer(Y, y_strides, b, h), matrix_pointer(V, v_strides, b, h)
    if DROPS:
        keys = tl.load(matrix_pointer(KEYS, key_strides, b, h) + i * key_strides[2], mask=i < n, other=0)
    out = tl.zeros((BLOCK, SIZE_BLOCK), tl.float32)
    first = split * share
    for start in range(first, tl.minimum(first + share, m), STEP):
        j = start + tl.arange(0, STEP)
        kept = taking_part(MASK, mask_strides, b, j, m, HAS_MASK)
        y = truncated(load_tile(y_base, y_strides, j, kept, WIDTH, WIDTH_BLOCK, DTYPE), PRECISION)
        v = load_tile(v_base, v_strides, j, kept, SIZE, SIZE_BLOCK, DTYPE)
        kernel = kernel_block(x, y, x_norms, half_square(y, y_scale), x_scale * y_scale * 1.4426950408889634, PRECISION)
        if DROPS:
            kernel = dropped_entries(kernel, keys[:, None], j[None, :], dropped)
        out += tl.dot(kernel.to(DTYPE), v, input_precision=PRECISION)
    if DROPS:
        out *= kept_scale(dropped)
    store_tile(out, matrix_pointer(OUT, out_strides, split * batch + b, h), out_strides, i, i < n, SIZE, SIZE_BLOCK)


@triton.jit(do_not_specialize=["heads", "n", "m", "blocks", "splits", "share", "dropped"])
def one_gradient(
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
    x = load_tile(matrix_pointer(X, x_strides, b, h), x_strides, i, kept, WIDTH, WIDTH_BLOCK, DTYPE)
    x = truncated(x, PRECISION)
    left = load_tile(matrix_pointer(A, a_strides, b, h), a_strides, i, kept, SIZE, SIZE_BLOCK, DTYPE)
    x_norms = half_square(x, x_scale)
    y_base, right_base = matrix_pointer(Y, y_strides, b, h), matrix_pointer(B, b_strides, b, h)
    if DROPS:
        key_base = matrix_pointer(KEYS, key_strides, b, h)
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
        y = truncated(load_tile(y_base, y_strides, j, taken, WIDTH, WIDTH_BLOCK, DTYPE), PRECISION)
        right = load_tile(right_base, b_strides, j, taken, SIZE, SIZE_BLOCK, DTYPE)
        kernel = kernel_block(x, y, x_norms, half_square(y, y_scale), x_scale * y_scale * 1.4426950408889634, PRECISION)
        if DROPS:
            if IS_X:
                kernel = dropped_entries(kernel, keys[:, None], j[None, :], dropped)
            else:
                other_keys = tl.load(key_base + j * key_strides[2], mask=taken, other=0)
                kernel = dropped_entries(kernel, other_keys[None, :], i[:, None], dropped)
        weights = tl.dot(left, tl.trans(right), input_precision=PRECISION) * kernel
        weights = truncated(weights.to(DTYPE), PRECISION)
        dx += tl.dot(weights, y, input_precision=PRECISION)
        sums += tl.sum(weights.to(tl.float32), 1)  # of the rounded weights, so that their rounding errors cancel
        if not IS_X:
            dv += tl.dot(kernel.to(DTYPE), right, input_precision=PRECISION)
    if DROPS:
        dx, sums, dv = dx * kept_scale(dropped), sums * kept_scale(dropped), dv * kept_scale(dropped)
    dx = dx * (x_scale * y_scale) - x.to(tl.float32) * (sums * (x_scale * x_scale))[:, None]
    store_tile(dx, matrix_pointer(DX, dx_strides, split * batch + b, h), dx_strides, i, i < n, WIDTH, WIDTH_BLOCK)
    if not IS_X:
        dv = tl.where(kept[:, None], dv, 0.0)
        store_tile(dv, matrix_pointer(DV, dv_strides, split * batch + b, h), dv_strides, i, i < n, SIZE, SIZE_BLOCK)


@triton.jit(do_not_specialize=["heads", "n", "m", "splits", "share"])
def both_gradients(
    S, s_strides, L, l_strides, A, a_strides, B, b_strides, DS, ds_strides, DL, dl_strides, DV, dv_strides,
    MASK, mask_strides,
    heads, n, m, splits, share, s_scale, l_scale,
    WIDTH: tl.constexpr, SIZE: tl.constexpr, WIDTH_BLOCK: tl.constexpr, SIZE_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr, LONG_VALUE: tl.constexpr,
    HAS_MASK: tl.constexpr,
):  # fmt: skip
    """The gradients of `one_gradient` for a short side, which is one block, and a share of the long one.

    A belongs to the short side and B to the long one. `DV` is `Σ_i κ(s_i, l_j) a_i` if `LONG_VALUE`, else
    `Σ_j κ(s_i, l_j) b_j`. The mask is one of the long side.
    """
    program = tl.program_id(0)
    split, matrix = program % splits, program // splits
    b, h = matrix // heads, matrix % heads
    batch = tl.num_programs(0) // (splits * heads)
    i = tl.arange(0, BLOCK)
    short = load_tile(matrix_pointer(S, s_strides, b, h), s_strides, i, i < n, WIDTH, WIDTH_BLOCK, DTYPE)
    short = truncated(short, PRECISION)
    left = load_tile(matrix_pointer(A, a_strides, b, h), a_strides, i, i < n, SIZE, SIZE_BLOCK, DTYPE)
    norms = half_square(short, s_scale)
    long_base, right_base = matrix_pointer(L, l_strides, b, h), matrix_pointer(B, b_strides, b, h)
    dl_base, dv_base = matrix_pointer(DL, dl_strides, b, h), matrix_pointer(DV, dv_strides, b, h)
    ds = tl.zeros((BLOCK, WIDTH_BLOCK), tl.float32)
    sums = tl.zeros((BLOCK,), tl.float32)
    dv = tl.zeros((BLOCK, SIZE_BLOCK), tl.float32)
    ones = tl.full((BLOCK, 16), 1.0, DTYPE)
    factor = s_scale * l_scale
    first = split * share
    for start in range(first, tl.minimum(first + share, m), STEP):
        j = start + tl.arange(0, STEP)
        kept = taking_part(MASK, mask_strides, b, j, m, HAS_MASK)
        long = truncated(load_tile(long_base, l_strides, j, kept, WIDTH, WIDTH_BLOCK, DTYPE), PRECISION)
        right = load_tile(right_base, b_strides, j, kept, SIZE, SIZE_BLOCK, DTYPE)
        kernel = kernel_block(short, long, norms, half_square(long, l_scale), factor * 1.4426950408889634, PRECISION)
        weights = tl.dot(left, tl.trans(right), input_precision=PRECISION) * kernel
        weights = truncated(weights.to(DTYPE), PRECISION)
        kernel = kernel.to(DTYPE)
        ds += tl.dot(weights, long, input_precision=PRECISION)
        sums += tl.sum(weights.to(tl.float32), 1)
        if LONG_VALUE:
            long_dv = tl.dot(tl.trans(kernel), left, input_precision=PRECISION)
            if HAS_MASK:
                long_dv = tl.where(kept[:, None], long_dv, 0.0)
            store_tile(long_dv, dv_base, dv_strides, j, j < m, SIZE, SIZE_BLOCK)
        else:
            dv += tl.dot(kernel, right, input_precision=PRECISION)
        weights = tl.trans(weights)
        dl = tl.dot(weights, short, input_precision=PRECISION) * factor
        long_sums = tl.sum(tl.dot(weights, ones, input_precision=PRECISION), 1)  # cheaper than a sum across warps
        dl -= long.to(tl.float32) * (long_sums * (l_scale * l_scale / 16))[:, None]
        store_tile(dl, dl_base, dl_strides, j, j < m, WIDTH, WIDTH_BLOCK)
    ds = ds * factor - short.to(tl.float32) * (sums * (s_scale * s_scale))[:, None]
    store_tile(ds, matrix_pointer(DS, ds_strides, split * batch + b, h), ds_strides, i, i < n, WIDTH, WIDTH_BLOCK)
    if not LONG_VALUE:
        store_tile(dv, matrix_pointer(DV, dv_strides, split * batch + b, h), dv_strides, i, i < n, SIZE, SIZE_BLOCK)


@triton.jit(do_not_specialize=["count", "splits"])
def add_parts(PARTS, OUT, count, splits, BLOCK: tl.constexpr):
    """`OUT = Σ PARTS`, `(splits, count)` → `(count,)`."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(splits):
        total += tl.load(PARTS + i, mask=i < count, other=0.0)
        PARTS += count
    tl.store(OUT + i, total.to(OUT.dtype.element_ty), mask=i < count)
