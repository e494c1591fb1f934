"""The two attention functions and the iterative inverse against their formulas (arXiv 2111.00035).

Shapes: B batch, H heads, L queries, S keys, P head dimension, D landmarks. Masks: True = takes part.
"""

import math
from itertools import pairwise

import pytest
import reference_attention as reference
import torch

from skyformer.functional import gaussian_attention, newton_schulz_inverse, nystrom_gaussian_attention

SHAPES = [  # B, H, L, S, P, D
    (2, 2, 33, 47, 32, 9),
    (1, 3, 64, 64, 16, 16),
    (2, 1, 1, 5, 32, 3),
    (3, 2, 50, 17, 16, 7),
]
SOLVERS = ["cholesky", "newton_schulz"]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


# ---------------------------------------------------------------------------------------------- helpers


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def draw_qkv(batch, heads, queries, keys, dim, seed=0, dtype=torch.float64):
    q = draw(batch, heads, queries, dim, seed=3 * seed, dtype=dtype)
    k = draw(batch, heads, keys, dim, seed=3 * seed + 1, dtype=dtype)
    v = draw(batch, heads, keys, dim, seed=3 * seed + 2, dtype=dtype)
    return q, k, v


def draw_mask(batch, keys):
    """Another length for every example, and a hole in the middle: padding need not be at the end."""
    mask = torch.ones(batch, keys, dtype=torch.bool)
    for b in range(batch):
        mask[b, keys - 1 - b :] = False
        mask[b, keys // 2] = False
    return mask


def gather_rows(query, key, rows, scale=None):
    """Landmarks W: the chosen rows (B, H, D) of the scaled [Q; K]."""
    scale = query.shape[-1] ** -0.25 if scale is None else scale
    both = torch.cat([query, key], dim=2) * scale
    return both.gather(2, rows[..., None].expand(-1, -1, -1, query.shape[-1]))


def draw_rows(query, key, count, mask=None, seed=0):
    """``count`` distinct rows of [Q; K] for each example and head, never a masked key."""
    batch, heads, queries, _ = query.shape
    allowed = torch.ones(batch, queries + key.shape[2])
    if mask is not None:
        allowed[:, queries:] = mask
    allowed = allowed.repeat_interleave(heads, 0)
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(allowed, count, generator=generator).view(batch, heads, count)


def output_and_gradients(function, inputs, dtype):
    """The output for ``inputs`` and the gradients of <output, a fixed random matrix> for each of them."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
    output = function(*leaves)
    cotangent = draw(*output.shape, seed=99).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, cotangent)]


def relative_error(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def assert_same(function, reference_function, inputs, dtype):
    actual = output_and_gradients(function, inputs, dtype)
    expected = output_and_gradients(reference_function, [x.to(dtype) for x in inputs], torch.float64)
    for name, a, e in zip(["output", "q", "k", "v", "w"], actual, expected, strict=False):
        assert a.dtype == dtype
        assert a.shape == e.shape
        assert relative_error(a, e) <= TOLERANCE[dtype], name


# ------------------------------------------------------------------------- the formulas, with gradients


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


# ------------------------------------------------------------------------------------------ exact limits


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


# ------------------------------------------------------------------------------- what the paper proves


def clustered_rows(count, dim, seed, clusters=4, spread=0.1):
    """Points close to a few shared centres, ``count / clusters`` to each."""
    centres = 3 * draw(clusters, dim, seed=1000)
    return centres[torch.arange(count) % clusters] + spread * draw(count, dim, seed=seed)


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("kind", ["random", "clustered"])
def test_lemma_3_eigenvalues(kind, ridge):
    """The spectrum of D_M^(-1/2) (M + ridge I) D_M^(-1/2) lies in (0, 1] and reaches 1.

    It is similar to D_M^-1 (M + ridge I), whose rows are positive and sum to one, so the largest eigenvalue
    is exactly 1 (the lemma's open interval is a slip). M is positive semidefinite, so the ridge keeps all
    above 0.
    """
    rows = draw(48, 32) if kind == "random" else clustered_rows(48, 32, seed=1)
    eigenvalues = torch.linalg.eigvalsh(reference.normalised_landmark_kernel(rows * 32**-0.25, ridge))
    assert eigenvalues.min() > 0
    assert eigenvalues.max() == pytest.approx(1, abs=1e-10)


def test_both_forms_of_the_nystrom_block_agree():
    """Eq. 5, with a sub-sampling matrix on the completion, is Eq. 6, with kernels of landmark rows."""
    q, k = draw(15, 4), draw(12, 4, seed=1)
    rows = torch.tensor([0, 3, 14, 17, 26])
    by_landmarks = reference.nystrom_kernel(q, k, torch.cat([q, k])[rows], 0.1)
    assert relative_error(by_landmarks, reference.nystrom_from_rows(q, k, rows, 0.1)) < 1e-12


def theorem_inputs(kind, n):
    """Queries and keys, already scaled, whose kernel has a low effective rank."""
    if kind == "random":  # two dimensions: the kernel's spectrum falls off fast
        generator = torch.Generator().manual_seed(7)
        return (2.8 * torch.rand(2, n, 2, dtype=torch.float64, generator=generator) - 1.4).unbind()
    return tuple(clustered_rows(n, 8, seed=s) * 8**-0.25 for s in (11, 12))


@pytest.mark.parametrize("kind", ["random", "clustered"])
def test_theorem_2(kind):
    """With d >= C (d_stat / beta) log(n / delta) uniform rows, ||C~ - C|| <= lambda = eps ||C||.

    Where the numbers come from. Let B = Cbar^(1/2), and let T hold d draws (with replacement) of columns of
    the identity of size 2n, each times sqrt(2n / d), so that E[T T^T] = I. The mean of d independent matrices

        (Cbar + lambda I)^(-1/2) (2n b_i b_i^T + lambda I) (Cbar + lambda I)^(-1/2),   b_i = column i of B,

    has expectation I, and each has norm at most 2n l_i + 1, l_i the leverage score of row i. Uniform sampling
    must satisfy 1 / (2n) >= beta l_i / d_stat for every i; the best beta gives d_stat / beta = 2n max_i l_i.
    The lower tail of the matrix Chernoff bound says that the mean falls below I / 2 with probability at most
    2n exp(-d (1 - log 2) / (2 (d_stat / beta + 1))). For the d used here that is delta: so C has a value.

    When it does not fall below, B T T^T B >= (Cbar - lambda I) / 2. The error of the completion, with ridge r
    beside T^T Cbar T, is r B (B T T^T B + r I)^-1 B. It grows with r, and at r = lambda / 2 it is at most
    (lambda / 2) B (Cbar / 2)^+ B <= lambda I. C~ - C is a block of it, so no larger.

    The landmark kernel M = kappa(W, W) has no factors sqrt(2n / d): T^T Cbar T = (2n / d) M. So the argument
    allows any ridge beside M up to (lambda / 2) (d / 2n); the scaling of T cancels everywhere else. The usual
    0.1 is below that limit here (tested too), but not for every input.
    """
    n, eps, delta, trials = 384, 0.3, 0.1, 10
    query, key = theorem_inputs(kind, n)
    both = torch.cat([query, key])
    exact = reference.gaussian_kernel(query, key)  # C
    lam = eps * torch.linalg.matrix_norm(exact, 2).item()

    leverage = reference.leverage_scores(query, key, lam)
    coherence = 2 * n * leverage.max().item()  # d_stat / beta
    beta = reference.statistical_dimension(query, key, lam).item() / coherence
    enough = math.ceil(2 / (1 - math.log(2)) * (coherence + 1) * math.log(2 * n / delta))
    assert 0 < beta <= 1
    assert enough < 0.75 * 2 * n  # the statement says something here

    # Value = I makes the output C~ itself. It has n columns and so must the head: zeros change no distance.
    widen = torch.nn.ZeroPad1d((0, n - both.shape[1]))
    q, k, w = (widen(x)[None, None] for x in (query, key, both))
    identity = torch.eye(n, dtype=torch.float64)[None, None]

    def successes(d, ridge):
        count = 0
        for seed in range(trials):
            rows = torch.randint(2 * n, (d,), generator=torch.Generator().manual_seed(seed))
            approximate = nystrom_gaussian_attention(q, k, identity, w[:, :, rows], ridge=ridge, scale=1.0)
            count += torch.linalg.matrix_norm(approximate[0, 0] - exact, 2).item() <= lam
        return count

    def largest_ridge(d):
        return lam / 2 * d / (2 * n)

    assert successes(enough, largest_ridge(enough)) >= (1 - delta) * trials
    assert largest_ridge(enough) > 0.1
    assert successes(enough, 0.1) >= (1 - delta) * trials
    # Controls: too few landmarks miss whole regions; a ridge far above the argument's shrinks all directions.
    assert successes(2, largest_ridge(2)) == 0
    assert successes(64, 20 * largest_ridge(64)) == 0


# --------------------------------------------------------------------------------- the iterative inverse


@pytest.mark.parametrize("kind", ["random", "clustered", "spectrum 1e-3 to 1"])
def test_newton_schulz_converges_to_the_inverse(kind):
    if kind == "random":
        heads = [draw(24, 32, seed=s) * 32**-0.25 for s in range(6)]
        matrix = torch.stack([reference.normalised_landmark_kernel(w, 0.1) for w in heads])
    elif kind == "clustered":
        heads = [clustered_rows(24, 32, seed=s) * 32**-0.25 for s in range(6)]
        matrix = torch.stack([reference.normalised_landmark_kernel(w, 0.1) for w in heads])
    else:
        basis = torch.linalg.qr(draw(6, 24, 24)).Q
        matrix = basis @ torch.diag(torch.logspace(-3, 0, 24, dtype=torch.float64)) @ basis.mT
    matrix = matrix.view(2, 3, 24, 24)
    inverse = torch.linalg.inv(matrix)
    errors = [relative_error(newton_schulz_inverse(matrix, i), inverse) for i in (1, 3, 6, 12, 24)]
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(errors))
    assert errors[0] > errors[-1]
    assert errors[-1] < 1e-9
    assert torch.equal(newton_schulz_inverse(matrix), newton_schulz_inverse(matrix, iterations=6))


@pytest.mark.parametrize("iterations", [1, 6])
def test_newton_schulz_inverse_is_per_matrix(iterations):
    """Clustered rows have not converged in six steps, so a start scaled by a neighbour's norm would show."""
    matrix = reference.normalised_landmark_kernel(clustered_rows(24, 32, seed=1) * 32**-0.25, 0.1)
    alone = newton_schulz_inverse(matrix, iterations)
    identity = torch.eye(24, dtype=torch.float64)
    uneven = reference.normalised_landmark_kernel(draw(24, 2), 0.1)  # its column sums differ widely
    for mate in (identity, 1e-3 * identity, uneven):
        beside = newton_schulz_inverse(torch.stack([mate, matrix]), iterations)[1]
        assert relative_error(beside, alone) < 1e-6


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_solvers_agree_on_unclustered_inputs(dtype):
    """Rows of unit scale and P = 32 are far apart, M is close to I, and six steps have converged."""
    q, k, v = draw_qkv(2, 2, 100, 100, 32)
    rows = draw_rows(q, k, 64)
    results = [
        output_and_gradients(
            lambda q, k, v, s=s: nystrom_gaussian_attention(q, k, v, gather_rows(q, k, rows), solver=s),
            [q, k, v],
            dtype,
        )
        for s in SOLVERS
    ]
    assert max(map(relative_error, *results)) < 1e-4


# ------------------------------------------------------------------------------- padding and batch-mates


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


# ---------------------------------------------------------------------------------- numerical behaviour


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


# ------------------------------------------------------------------------------------------------ errors


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
