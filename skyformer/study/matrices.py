"""Norms, leverage scores and condition numbers of attention matrices and outputs."""

from collections.abc import Callable

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]


def thin_norm(matrix: Tensor) -> Tensor:
    """‖A‖₂ of `(…, n, p)` with small p, from the eigenvalues of AᵀA in float64, `(…)`."""
    gram = matrix.double().mT @ matrix.double()
    return torch.linalg.eigvalsh(gram)[..., -1].clamp(min=0).sqrt()


def operator_norm(product: Product, transposed: Product, like: Tensor, block: int = 8, iterations: int = 12) -> Tensor:
    """‖A‖₂ of a matrix that is known by its products, `(…)`, by subspace iteration on AᵀA.

    Args:
        product: X → A X, `(…, m, c)` → `(…, n, c)`.
        transposed: Y → Aᵀ Y.
        like: `(…, m, m)`, whose leading sizes, m, dtype and device those of X are.
        block: c; what is found is a lower bound, within 1 % for a square Gaussian matrix, whose singular values lie
            close together.
        iterations: products with AᵀA.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (*like.shape[:-2], like.shape[-2], min(block, like.shape[-2]))
    basis = torch.randn(shape, generator=generator, dtype=like.dtype).to(like.device)
    for _ in range(iterations):
        basis = torch.linalg.qr(transposed(product(basis))).Q
    return torch.linalg.matrix_norm(product(basis), ord=2)


def leverage_scores(kernel: Tensor, ridge: float) -> Tensor:
    """`ℓ_i = (K (K + λI)⁻¹)_ii = 1 − λ ((K + λI)⁻¹)_ii` of a positive semidefinite `(m, m)` → `(m,)`, exactly; their
    sum is the statistical dimension d_stat (Skyformer, Theorem 2).
    """
    system = kernel + ridge * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    return 1 - ridge * torch.cholesky_inverse(torch.linalg.cholesky(system)).diagonal()


def condition_number(values: Tensor) -> Tensor:
    """σ_1 / σ_n of singular values `(…, n)`, `(…)`; infinite where σ_n is below σ_1 times n times the machine epsilon,
    that is, where the rank is not full.
    """
    smallest = values[..., 0] * torch.finfo(values.dtype).eps * values.shape[-1]
    return torch.where(values[..., -1] > smallest, values[..., 0] / values[..., -1], torch.inf)
