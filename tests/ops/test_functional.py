"""The two attention functions and the iterative inverse against their formulas (arXiv 2111.00035).

Shapes: B batch, H heads, L queries, S keys, P head dimension, D landmarks. Masks: True = takes part.
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
    output_and_gradients,
    relative_error,
)
from torch.utils._python_dispatch import TorchDispatchMode

from skyformer.ops import landmarks
from skyformer.ops.gaussian import gaussian_attention
from skyformer.ops.nystrom import nystrom_gaussian_attention


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_gaussian_attention_is_equation_3(shape, masked, dtype):
    batch, _, _, keys, _, _ = shape
    mask = draw_mask(batch, keys) if masked else None
    assert_same(
        lambda q, k, v: gaussian_attention(q, k, v, mask),
        lambda q, k, v: reference.gaussian_attention(q, k, v, mask),
        draw_qkv(*shape[:5]),
        dtype,
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_nystrom_attention_with_free_landmarks_is_equation_6(shape, masked, dtype):
    batch, heads, _, keys, dim, count = shape
    mask = draw_mask(batch, keys) if masked else None
    landmarks = draw(batch, heads, count, dim, seed=50) * dim**-0.25
    assert_same(
        lambda q, k, v, w: nystrom_gaussian_attention(q, k, v, w, mask),
        lambda q, k, v, w: reference.nystrom_gaussian_attention(q, k, v, w, mask),
        [*draw_qkv(*shape[:5]), landmarks],
        dtype,
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_reach_query_and_key_through_the_landmarks(shape, masked, dtype):
    batch, _, _, keys, _, count = shape
    mask = draw_mask(batch, keys) if masked else None
    q, k, v = draw_qkv(*shape[:5])
    rows = draw_rows(q, k, count, mask)
    assert_same(
        lambda q, k, v: nystrom_gaussian_attention(q, k, v, gather_rows(q, k, rows), mask),
        lambda q, k, v: reference.nystrom_gaussian_attention(q, k, v, gather_rows(q, k, rows), mask),
        [q, k, v],
        dtype,
    )


class _Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.add(str(function))
        return function(*args, **(kwargs or {}))


def test_gradients_of_distinct_rows_have_an_operator_for_graphs():
    """With deterministic algorithms, CUDA's `scatter` makes the processor wait, which a CUDA graph cannot hold."""
    q, k = (torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    rows = torch.stack([torch.randperm(10)[:4] for _ in range(2)])
    with _Operators() as operators:
        landmarks.gather_rows(q, k, rows, distinct=True).square().sum().backward()
    assert not [name for name in operators.seen if "scatter" in name]
    joined = torch.zeros(2, 3, 10, 4, dtype=torch.float64)
    for example, chosen in enumerate(rows):
        joined[example, :, chosen] = 2 * torch.cat([q, k], dim=2)[example, :, chosen].detach()
    assert torch.equal(q.grad, joined[:, :, :5])
    assert torch.equal(k.grad, joined[:, :, 5:])


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_scale_multiplies_query_and_key(scale):
    q, k, v = draw_qkv(2, 2, 7, 11, 16)
    rows = draw_rows(q, k, 5)
    assert_same(
        lambda q, k, v: gaussian_attention(q, k, v, scale=scale),
        lambda q, k, v: reference.gaussian_attention(q, k, v, scale=scale),
        [q, k, v],
        torch.float64,
    )
    assert_same(
        lambda q, k, v: nystrom_gaussian_attention(q, k, v, gather_rows(q, k, rows, scale), scale=scale),
        lambda q, k, v: reference.nystrom_gaussian_attention(q, k, v, gather_rows(q, k, rows, scale), scale=scale),
        [q, k, v],
        torch.float64,
    )


def test_strided_inputs():
    """Projections give (B, N, H, P); what arrives here is its transpose, which is not contiguous."""
    q, k, v = (x.transpose(1, 2) for x in draw_qkv(2, 9, 3, 3, 16))
    rows = draw_rows(q, k, 4)
    assert not q.is_contiguous()
    expected = reference.gaussian_attention(q, k, v)
    assert relative_error(gaussian_attention(q, k, v), expected) < 1e-10
    w = gather_rows(q, k, rows)
    expected = reference.nystrom_gaussian_attention(q, k, v, w)
    assert relative_error(nystrom_gaussian_attention(q, k, v, w), expected) < 1e-10


def test_the_kernel_sees_only_differences():
    """kappa(q + c, k + c) = kappa(q, k), also far from the origin, where |q|^2 is large next to |q - k|^2."""
    q, k, v = draw_qkv(1, 2, 20, 20, 32)
    near = gaussian_attention(q, k, v)
    assert relative_error(gaussian_attention(q + 3, k + 3, v), near) < 1e-10
    far = gaussian_attention((q + 3).float(), (k + 3).float(), v.float())
    assert relative_error(far, near) < 1e-3


def test_every_row_a_landmark_and_no_ridge_is_gaussian_attention():
    """The error of the completion is then ridge * Cbar (Cbar + ridge I)^-1: linear in a small ridge."""
    q, k, v = draw_qkv(2, 2, 21, 13, 16)
    every_row = torch.arange(21 + 13).expand(2, 2, -1)
    exact = gaussian_attention(q, k, v)

    def error(ridge):
        w = gather_rows(q, k, every_row)
        return relative_error(nystrom_gaussian_attention(q, k, v, w, ridge=ridge), exact)

    assert error(1e-1) > error(1e-2) > error(1e-4)
    assert error(1e-10) < 1e-9


@pytest.mark.parametrize("solver", SOLVERS)
def test_dropped_landmarks_are_as_if_absent(solver):
    q, k, v = draw_qkv(2, 2, 19, 23, 16)
    w = gather_rows(q, k, draw_rows(q, k, 8))
    keep = torch.tensor([[True, False, True, True, False, True, True, False], [True] * 3 + [False] * 5])

    masked = output_and_gradients(
        lambda q, k, v, w: nystrom_gaussian_attention(q, k, v, w, solver=solver, landmark_mask=keep),
        [q, k, v, w],
        torch.float64,
    )
    for b in range(2):
        alone = nystrom_gaussian_attention(
            q[b : b + 1], k[b : b + 1], v[b : b + 1], w[b : b + 1, :, keep[b]], solver=solver
        )
        # Six iterative steps start from another matrix size, so that solver is equal only up to its error.
        assert relative_error(masked[0][b : b + 1], alone) < (1e-10 if solver == "cholesky" else 1e-4)
        assert torch.count_nonzero(masked[4][b, :, ~keep[b]]) == 0

    if solver == "cholesky":
        expected = output_and_gradients(
            lambda q, k, v, w: reference.nystrom_gaussian_attention(q, k, v, w, landmark_mask=keep),
            [q, k, v, w],
            torch.float64,
        )
        assert max(map(relative_error, masked, expected)) < 1e-10


@pytest.mark.parametrize("solver", SOLVERS)
def test_nothing_to_attend_to_gives_zeros(solver):
    """A sum over no keys, or an approximation from no landmarks, is zero, not NaN."""
    q, k, v = draw_qkv(2, 2, 6, 9, 16)
    w = gather_rows(q, k, draw_rows(q, k, 4))
    keys = torch.ones(2, 9, dtype=torch.bool)
    kept = torch.ones(2, 4, dtype=torch.bool)
    keys[0] = kept[0] = False
    functions = [
        lambda q, k, v, w: gaussian_attention(q, k, v, keys) + 0 * w.sum(),
        lambda q, k, v, w: nystrom_gaussian_attention(q, k, v, w, keys, solver=solver),
        lambda q, k, v, w: nystrom_gaussian_attention(q, k, v, w, solver=solver, landmark_mask=kept),
    ]
    for function in functions:
        output, *gradients = output_and_gradients(function, [q, k, v, w], torch.float64)
        assert torch.count_nonzero(output[0]) == 0
        assert torch.count_nonzero(output[1]) > 0
        assert all(g.isfinite().all() for g in gradients)
