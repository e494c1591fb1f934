"""Lemma 3, the two forms of the Nyström block, Theorem 2 and the iterative inverse of Skyformer (NeurIPS 2021)."""

import math
from itertools import pairwise

import pytest
import reference_attention as reference
import torch
from attention_inputs import (
    SOLVERS,
    TOLERANCE,
    clustered_rows,
    draw,
    draw_qkv,
    draw_rows,
    gather_rows,
    output_and_gradients,
    relative_error,
)

from skyformer.ops.linalg import newton_schulz_inverse
from skyformer.ops.nystrom import normalised_system, nystrom_gaussian_attention, regularized_gram


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("kind", ["random", "clustered"])
def test_lemma_3_eigenvalues(kind, ridge):
    """The spectrum of D_M^(-1/2) (M + ridge I) D_M^(-1/2) lies in (0, 1] and reaches 1.

    It is similar to D_M^-1 (M + ridge I), whose rows are positive and sum to one, so the largest eigenvalue
    is exactly 1 (the lemma's open interval is a slip). M is positive semidefinite, so the ridge keeps all
    above 0.
    """
    rows = draw(48, 32) if kind == "random" else clustered_rows(48, 32, seed=1)
    matrix, _ = normalised_system(regularized_gram(rows[None, None] * 32**-0.25, ridge))
    torch.testing.assert_close(matrix[0, 0], reference.normalised_landmark_kernel(rows * 32**-0.25, ridge))
    eigenvalues = torch.linalg.eigvalsh(matrix)
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


def test_iterative_solver_is_the_released_one_on_a_hard_system():
    """128 landmarks in three clusters: condition 422, on which six steps have not converged and the start shows."""
    q, k, v = (clustered_rows(50, 32, seed=s, clusters=3, spread=1.0) for s in (1, 2, 3))
    landmarks = clustered_rows(128, 32, seed=4, clusters=3, spread=0.065) * 32**-0.25
    normalised = reference.normalised_landmark_kernel(landmarks, 0.1)
    assert torch.linalg.cond(normalised) == pytest.approx(422, abs=1)

    half = torch.diag((reference.gaussian_kernel(landmarks, landmarks).sum(-1) + 0.1).rsqrt())
    inverse = half @ reference.released_inverse(normalised) @ half
    query, key = q * 32**-0.25, k * 32**-0.25
    expected = reference.gaussian_kernel(query, landmarks) @ inverse @ reference.gaussian_kernel(landmarks, key) @ v

    mate = 3 * draw(128, 32, seed=5)  # its column sums are larger
    w = torch.stack([landmarks, mate])[:, None]
    q, k, v = (torch.stack([x, x])[:, None] for x in (q, k, v))
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 5e-6)):
        inputs = (x.to(dtype) for x in (q, k, v, w))
        actual = nystrom_gaussian_attention(*inputs, solver="newton_schulz")[0, 0]
        assert relative_error(actual, expected) < tolerance


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
