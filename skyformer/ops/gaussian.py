"""Gaussian-kernel attention as a function of query, key and value.

Chen, Zeng, Ji, Yang, "Skyformer: Remodel Self-Attention with Gaussian Kernel and Nyström Method", NeurIPS 2021.
κ(x, y) = exp(−‖x − y‖² / 2).

Shapes: B batch, H heads, L queries, S keys, P head dimension. Masks are boolean, True = a real token.
"""

import torch
from torch import Tensor

from skyformer.ops import triton_dispatch
from skyformer.ops.checks import check_inputs
from skyformer.ops.dropout import dropout
from skyformer.ops.flash import gaussian_sum, has_flash
from skyformer.ops.kernel import gaussian_kernel, product_dtype
from skyformer.ops.kernel_product import gaussian_product, without_padding
from skyformer.ops.recompute import by_query_blocks


def gaussian_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Kernelized attention, Eq. 3: `C V` with `C = κ(Q / p^¼, K / p^¼)`. No softmax, no row normaliser.

    It takes O(L S) time and O(L + S) memory. A GPU uses Triton kernels (`triton_dispatch.py`). A CPU without dropout
    uses torch's flash kernel (`flash.py`). Otherwise blocks of queries are computed, and their part of C is recomputed
    in the backward pass.

    Args:
        query: `(B, H, L, P)`, floating.
        key, value: `(B, H, S, P)`; the value's last size may differ.
        mask: `(B, S)` bool; a masked key contributes nothing.
        scale: factor on query and on key; default `P ** -0.25`.
        dropout_p: probability of dropping an entry of C (always, as in `scaled_dot_product_attention`).

    Returns:
        `(B, H, L, P)`, of the value's dtype.

    Raises:
        ValueError: for shapes or types that do not go together, naming the argument.
    """
    check_inputs(query, key, value, mask)
    scale = query.shape[-1] ** -0.25 if scale is None else scale
    if triton_dispatch.has_kernels(query, key, value):
        return triton_dispatch.gaussian_attention(query, key, value, mask, scale, dropout_p).to(value.dtype)
    value = without_padding(value, mask)
    if dropout_p == 0:
        low_query, low_key, low_value = (x.to(product_dtype(query)) for x in (query, key, value))
        if has_flash(low_query):
            with torch.autocast(query.device.type, enabled=False):
                return gaussian_sum(low_query, low_key, low_value, mask, scale**2).to(value.dtype)
    query, key = query * scale, key * scale

    def attend(block: Tensor) -> Tensor:
        if dropout_p == 0:
            return gaussian_product(block, key, value)
        kernel = dropout(gaussian_kernel(block, key), dropout_p)
        return kernel @ value.to(kernel.dtype)

    return by_query_blocks(attend, query, key.shape[2], draws_numbers=dropout_p > 0).to(value.dtype)
