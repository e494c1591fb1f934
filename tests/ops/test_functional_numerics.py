"""The attention functions under padding, batch-mates, extreme scales, low precision and wrong arguments."""

import pytest
import reference_attention as reference
import torch
from attention_inputs import (
    SOLVERS,
    clustered_rows,
    draw,
    draw_mask,
    draw_qkv,
    draw_rows,
    gather_rows,
    output_and_gradients,
    relative_error,
)

from skyformer.ops.gaussian import gaussian_attention
from skyformer.ops.nystrom import nystrom_gaussian_attention


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("size", [1e3, 1.0, 0.0])
@pytest.mark.parametrize("place", [0, 1])
def test_batch_mates_do_not_matter(place, size, solver):
    """Clustered rows, on which six steps have not converged, beside random ones of another size."""
    q, k, v = (clustered_rows(30, 4, seed=s).float()[None, None] for s in (1, 2, 3))
    mate = [size * x for x in draw_qkv(1, 1, 30, 30, 4, seed=5, dtype=torch.float32)]
    pairs = zip((q, k, v), mate, strict=True)
    together = [torch.cat([x, y] if place == 0 else [y, x]) for x, y in pairs]
    rows = draw_rows(q, k, 12)

    def nystrom(q, k, v):
        landmarks = gather_rows(q, k, rows.expand(len(q), -1, -1))
        return nystrom_gaussian_attention(q, k, v, landmarks, solver=solver)

    for function in (nystrom, gaussian_attention):
        alone = output_and_gradients(lambda q, k, v, f=function: f(q, k, v)[0], [q, k, v], torch.float32)
        output, *gradients = output_and_gradients(
            lambda q, k, v, f=function: f(q, k, v)[place], together, torch.float32
        )
        assert relative_error(output, alone[0]) < 1e-6
        for a, g in zip(alone[1:], gradients, strict=True):
            assert relative_error(g[place], a[0]) < 1e-6
            assert torch.count_nonzero(g[1 - place]) == 0


@pytest.mark.parametrize("solver", SOLVERS)
def test_padding_changes_nothing(solver):
    q, k, v = draw_qkv(2, 2, 21, 21, 16, dtype=torch.float32)
    w = gather_rows(q, k, draw_rows(q, k, 8))
    longer = [torch.cat([x, 1e4 * draw(2, 2, 6, 16, seed=70, dtype=x.dtype)], dim=2) for x in (k, v)]
    mask = torch.arange(27).expand(2, 27) < 21

    def nystrom(q, k, v, mask=None):
        return nystrom_gaussian_attention(q, k, v, w, mask, solver=solver)

    for function in (nystrom, gaussian_attention):
        short = output_and_gradients(function, [q, k, v], torch.float32)
        padded = output_and_gradients(lambda q, k, v, f=function: f(q, k, v, mask), [q, *longer], torch.float32)
        for s, p in zip(short, padded, strict=True):
            assert relative_error(p[:, :, :21], s) < 1e-6
        for gradient in padded[2:]:
            assert torch.count_nonzero(gradient[:, :, 21:]) == 0


@pytest.mark.parametrize("masked", [False, True])
def test_finite_differences(masked):
    q, k, v = draw_qkv(2, 1, 3, 4, 2)
    w = draw(2, 1, 3, 2, seed=50)
    mask = torch.tensor([[True, True, False, True], [True, True, False, False]]) if masked else None
    kept = torch.tensor([[True, True, True], [True, False, True]]) if masked else None
    inputs = [x.requires_grad_() for x in (q, k, v, w)]
    assert torch.autograd.gradcheck(lambda q, k, v: gaussian_attention(q, k, v, mask), inputs[:3])
    assert torch.autograd.gradcheck(lambda *x: nystrom_gaussian_attention(*x, mask, landmark_mask=kept), inputs)


def test_finite_differences_of_the_iterative_solver():
    """Landmarks far apart, so that the steps have converged and how they start has no influence left."""
    q, k, v = draw_qkv(1, 2, 3, 4, 2)
    corners = torch.tensor([[0.0, 0.0], [2.0, 0.4], [-0.6, 2.2]], dtype=torch.float64)
    w = corners.expand(1, 2, 3, 2).clone()
    inputs = [x.requires_grad_() for x in (q, k, v, w)]
    assert torch.autograd.gradcheck(lambda *x: nystrom_gaussian_attention(*x, solver="newton_schulz"), inputs)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("size", [1e-4, 1.0, 30.0, 1e3])
def test_finite_at_any_scale(size, solver):
    q, k, v = (size * x for x in draw_qkv(2, 2, 25, 31, 32, dtype=torch.float32))
    rows = draw_rows(q, k, 10)
    mask = draw_mask(2, 31)

    def nystrom(q, k, v):
        return nystrom_gaussian_attention(q, k, v, gather_rows(q, k, rows), mask, solver=solver)

    for function in (nystrom, lambda q, k, v: gaussian_attention(q, k, v, mask)):
        for tensor in output_and_gradients(function, [q, k, v], torch.float32):
            assert tensor.isfinite().all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_equal_landmarks(solver):
    """M is the all-ones matrix, of rank one; only the ridge makes the system solvable."""
    q, k, v = draw_qkv(2, 2, 11, 14, 32, dtype=torch.float32)
    rows = draw_rows(q, k, 1).expand(-1, -1, 16)
    actual = output_and_gradients(
        lambda q, k, v: nystrom_gaussian_attention(q, k, v, gather_rows(q, k, rows), solver=solver),
        [q, k, v],
        torch.float32,
    )
    assert all(x.isfinite().all() for x in actual)
    if solver == "cholesky":
        w = gather_rows(q, k, rows)
        expected = reference.nystrom_gaussian_attention(*(x.double() for x in (q, k, v, w)))
        assert relative_error(actual[0], expected) < 1e-4


@pytest.mark.parametrize("scale", [1.0, 3.0, 5.0])
def test_bfloat16_holds_far_from_the_origin(scale):
    """Keys near their queries: x·y is large there and the exponent small; only the exponent may be rounded."""
    q, noise, v = (x.float() for x in draw_qkv(1, 2, 65, 65, 32))
    q, k = (scale * q).bfloat16(), (scale * q + 0.3 * noise).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        actual = gaussian_attention(q, k, v.bfloat16())
    exact = reference.gaussian_attention(q.double(), k.double(), v.bfloat16().double())
    assert relative_error(actual, exact) < 1e-2


def test_padding_may_hold_anything():
    q, k, v = (x.float() for x in draw_qkv(1, 2, 9, 9, 8))
    mask = torch.arange(9)[None] < 6
    poisoned = v.masked_fill(~mask[:, None, :, None], float("nan"))
    torch.testing.assert_close(gaussian_attention(q, k, poisoned, mask), gaussian_attention(q, k, v, mask))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_autocast(dtype, solver):
    """Within 5 % of float64 (bfloat16 keeps 8 bits, and an error in the exponent is one in the kernel)."""
    q, k, v = (x.to(dtype).requires_grad_() for x in draw_qkv(2, 2, 65, 65, 32))
    w = gather_rows(q, k, draw_rows(q, k, 32)).detach()
    with torch.autocast("cpu", torch.bfloat16):
        dense = gaussian_attention(q, k, v)
        nystrom = nystrom_gaussian_attention(q, k, v, w, solver=solver)
    q64, k64, v64, w64 = (x.detach().double() for x in (q, k, v, w))
    assert relative_error(dense, reference.gaussian_attention(q64, k64, v64)) < 5e-2
    assert relative_error(nystrom, reference.nystrom_gaussian_attention(q64, k64, v64, w64)) < 5e-2
    gradients = torch.autograd.grad(dense.float().sum() + nystrom.float().sum(), [q, k, v])
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": torch.ones(2, 8, dtype=torch.bool)}, "mask"),
        ({"mask": torch.ones(1, 9, dtype=torch.bool)}, "mask"),
        ({"mask": torch.ones(2, 1, 1, 9, dtype=torch.bool)}, "mask"),
        ({"mask": torch.ones(2, 9)}, "mask"),
        ({"mask": torch.ones(2, 9, dtype=torch.long)}, "mask"),
        ({"query": torch.zeros(2, 2, 6, 8)}, "query|key"),
        ({"landmarks": torch.zeros(2, 4, 16)}, "landmarks"),
        ({"landmarks": torch.zeros(2, 2, 4, 8)}, "landmarks"),
        ({"landmark_mask": torch.ones(2, 5, dtype=torch.bool)}, "landmark_mask"),
        ({"landmark_mask": torch.ones(2, 4)}, "landmark_mask"),
        ({"ridge": 0.0}, "ridge"),
        ({"ridge": -0.1}, "ridge"),
        ({"solver": "qr"}, "qr.*cholesky.*newton_schulz"),
    ],
)
def test_errors_name_the_argument(change, message):
    q, k, v = draw_qkv(2, 2, 6, 9, 16, dtype=torch.float32)
    arguments = {"query": q, "key": k, "value": v}
    with pytest.raises(ValueError, match=f"(?s){message}"):
        nystrom_gaussian_attention(**(arguments | {"landmarks": torch.zeros(2, 2, 4, 16)} | change))
    if change.keys() <= {"query", "mask"}:
        with pytest.raises(ValueError, match=message):
            gaussian_attention(**(arguments | change))
