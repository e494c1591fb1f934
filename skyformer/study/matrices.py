"""Norms, leverage scores and condition numbers of attention matrices and outputs."""

import torch
from torch import Tensor


def thin_norm(matrix: Tensor) -> Tensor:
    """‖A‖₂ of `(…, n, p)` with small p, from the eigenvalues of AᵀA in float64, `(…)`."""
    gram = matrix.double().mT @ matrix.double()
    return torch.linalg.eigvalsh(gram)[..., -1].clamp(min=0).sqrt()


def leverage_scores(kernel: Tensor, ridge: float) -> Tensor:
    """`ℓ_i = (K (K + λI)⁻¹)_ii = 1 − λ ((K + λI)⁻¹)_ii` of a positive semidefinite `(m, m)` → `(m,)`, exactly; their
    sum is the statistical dimension d_stat (Skyformer, Theorem 2).
    """
    system = kernel + ridge * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    return 1 - ridge * torch.cholesky_inverse(torch.linalg.cholesky(system)).diagonal()


def condition_number(values: Tensor) -> Tensor:
    """Return σ_1 / σ_n of singular values `(…, n)`, `(…)`.

    It is infinite if σ_n is below σ_1 times n times the machine epsilon, so the rank is not full.
    """
    smallest = values[..., 0] * torch.finfo(values.dtype).eps * values.shape[-1]
    return torch.where(values[..., -1] > smallest, values[..., 0] / values[..., -1], torch.inf)
