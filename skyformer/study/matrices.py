"""Norms, leverage scores and condition numbers of attention matrices and outputs."""

import torch
from torch import Tensor


def thin_norm(matrix: Tensor) -> Tensor:
    """‖A‖₂ of `(…, n, p)` with small p, from the eigenvalues of AᵀA in float64, `(…)`."""
    gram = matrix.double().mT @ matrix.double()
    return torch.linalg.eigvalsh(gram)[..., -1].clamp(min=0).sqrt()


def softmax_target(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`softmax(Q Kᵀ / √p) V`."""
    logits = query.double() @ key.double().mT * query.shape[-1] ** -0.5
    return logits.softmax(dim=-1) @ value.double()


def relative_distance(out: Tensor, target: Tensor) -> dict[str, float]:
    """Return spectral norms as means over the heads: of the difference, and of that divided by the target's."""
    error, norm = thin_norm(out - target), thin_norm(target)
    return {"error": error.mean().item(), "relative": (error / norm).mean().item()}


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
