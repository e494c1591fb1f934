"""Softmax attention through landmarks against its formula, in float64.

Shapes: B batch, H heads, N tokens, P head dimension, D landmarks. Masks: True = takes part.
"""

import pytest
import reference_attention as reference
import torch
from attention_inputs import (
    SHAPES,
    SOLVERS,
    TOLERANCE,
    assert_same,
    draw,
    draw_mask,
    draw_qkv,
    draw_rows,
    gather_rows,
    relative_error,
)

from skyformer.ops import matched_keys, nystrom_softmax_attention


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES[1::2])  # enough landmarks for a mask
def test_output_and_gradients_are_the_formulas(shape, masked, dtype):
    batch, heads, _, keys, dim, count = shape
    mask = draw_mask(batch, keys) if masked else None
    landmark_mask = draw_mask(batch, count) if masked else None
    landmarks = draw(batch, heads, count, dim, seed=50) * dim**-0.25
    assert_same(
        lambda q, k, v, w: nystrom_softmax_attention(q, k, v, w, mask, landmark_mask=landmark_mask),
        lambda q, k, v, w: reference.nystrom_softmax_attention(q, k, v, w, mask, landmark_mask=landmark_mask),
        [*draw_qkv(*shape[:5]), landmarks],
        dtype,
    )


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_every_row_a_landmark_is_softmax(scale, solver):
    q, k, v = draw_qkv(2, 2, 12, 12, 32)
    mask = draw_mask(2, 12)
    k = matched_keys(q, k, mask)
    rows = torch.arange(24).expand(2, 2, -1)
    landmarks = gather_rows(q, k, rows, scale)
    out = nystrom_softmax_attention(q, k, v, landmarks, mask, 1e-7, solver, scale=scale)
    error = relative_error(out, reference.softmax_attention(q, k, v, mask, scale=scale))
    assert error < (1e-5 if solver == "cholesky" else 1e-2)


@pytest.mark.parametrize("masked", [False, True])
def test_matched_keys_leave_softmax_as_it_is(masked):
    q, k, v = draw_qkv(2, 2, 9, 9, 16)
    mask = draw_mask(2, 9) if masked else None
    shifted = matched_keys(q, k + 2, mask)
    assert relative_error(shifted, reference.matched_keys(q, k, mask)) < 1e-12
    exact = reference.softmax_attention(q, k, v, mask)
    assert relative_error(reference.softmax_attention(q, shifted, v, mask), exact) < 1e-12


def test_matched_keys_bring_clouds_apart_nearer_to_softmax():
    q, k, v = draw_qkv(1, 2, 64, 64, 16)
    k = k + 4
    errors = []
    for keys in (k, matched_keys(q, k)):
        rows = draw_rows(q, keys, 32)
        out = nystrom_softmax_attention(q, keys, v, gather_rows(q, keys, rows))
        errors.append(relative_error(out, reference.softmax_attention(q, k, v)))
    assert errors[1] < errors[0] / 2


def test_large_norms_stay_finite_and_right():
    """exp(‖k‖² / 2) alone overflows, and κ(q, W) underflows for a query far from the landmarks."""
    q, k, v = (x.float() for x in draw_qkv(1, 1, 10, 10, 16))
    q = q + 20
    k = matched_keys(q, k)
    landmarks = gather_rows(q, k, torch.arange(20).expand(1, 1, -1))
    assert not (k * 16**-0.25).square().sum(-1).div(2).exp().isfinite().all()
    out = nystrom_softmax_attention(q, k, v, landmarks, ridge=1e-3)
    assert relative_error(out, reference.softmax_attention(q.double(), k.double(), v.double())) < 0.01
    far = nystrom_softmax_attention(q + 40, k, v, landmarks[:, :, :5])
    assert far.isfinite().all()


def test_row_sum_that_is_not_positive_takes_the_mean():
    """Two landmarks close to each other, and γ small: their kernel rows cancel, and some sums are negative."""
    q, k, v = draw_qkv(1, 1, 200, 30, 2, seed=3)
    q, k = 3 * q, 2 * k
    landmarks = torch.tensor([[[[0.0, 0.0], [0.3, 0.0]]]], dtype=torch.float64)
    kernel = reference.nystrom_kernel(q[0, 0] * 2**-0.25, k[0, 0] * 2**-0.25, landmarks[0, 0], 1e-6)
    total = kernel @ (k[0, 0] * 2**-0.25).square().sum(-1).div(2).exp()
    assert (total < 0).any()
    query = q.clone().requires_grad_()
    out = nystrom_softmax_attention(query, k, v, landmarks, ridge=1e-6)
    torch.testing.assert_close(out[0, 0][total < 0], v.mean(dim=2)[0].expand(int((total < 0).sum()), -1))
    assert (out <= v.amax(dim=2)).all()
    assert (out >= v.amin(dim=2)).all()
    out.sum().backward()
    assert query.grad is not None
    assert query.grad.isfinite().all()


def test_example_without_a_token_takes_the_mean_of_all():
    q, k, v = draw_qkv(2, 2, 6, 6, 8)
    mask = torch.tensor([[True] * 6, [False] * 6])
    landmark_mask = torch.tensor([[True] * 4, [False] * 4])
    out = nystrom_softmax_attention(q, k, v, q[:, :, :4] * 8**-0.25, mask, landmark_mask=landmark_mask)
    torch.testing.assert_close(out[1], v[1].mean(dim=1, keepdim=True).expand_as(v[1]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_in_float32(dtype):
    q, k, v = (x.to(dtype) for x in draw_qkv(1, 2, 20, 20, 16))
    landmarks = gather_rows(q.float(), k.float(), draw_rows(q, k, 8))
    out = nystrom_softmax_attention(q, k, v, landmarks)
    assert out.dtype == dtype
    expected = nystrom_softmax_attention(q.float(), k.float(), v.float(), landmarks)
    torch.testing.assert_close(out, expected.to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = nystrom_softmax_attention(q.float(), k.float(), v.float(), landmarks)
    torch.testing.assert_close(mixed, expected)


def test_wrong_arguments_are_named():
    q, k, v = draw_qkv(1, 1, 4, 4, 8)
    with pytest.raises(ValueError, match="ridge=0 must be greater than 0"):
        nystrom_softmax_attention(q, k, v, q, ridge=0)
    with pytest.raises(ValueError, match="landmarks must have shape"):
        nystrom_softmax_attention(q, k, v, q[..., :4])
