"""Landmarks by randomly pivoted Cholesky in blocks.

Chen, Epperly, Tropp, Webber, "Randomly pivoted Cholesky", Communications on Pure and Applied Mathematics, 2025.
"""

import math

import torch
from torch import Tensor

from skyformer.ops.kernel import gaussian_gram, gaussian_kernel

BLOCKS = 8
SMALLEST = 1e-6  # a residual: rows that equal a chosen one stay possible, since d rows are needed


def pivoted_rows(rows: Tensor, noise: Tensor, num_landmarks: int, blocks: int = BLOCKS) -> Tensor:
    """Draw rows with probabilities proportional to the residual that the rows before them leave.

    With K = κ(X, X) and S the rows drawn so far, the residual is `diag(K − K_S K_SS⁻¹ K_Sᵀ)`. It is updated after each
    block of d / `blocks` rows. A block is drawn without replacement, and the first block uniformly, since the diagonal
    of K is one. O(m d (d + p)) time, O(m d) memory, fixed shapes.

    The draw is a race: row i arrives at time e_i / r_i, with an exponential e_i = −ln u_i and residual r_i. The first
    rows win. If e_i has not arrived by the time t, then e_i − t r_i is exponential again. So one random number for each
    row is enough for all blocks.

    Args:
        rows: X, `(m, p)`, scaled.
        noise: u, `(m,)`, uniform in [0, 1).
        num_landmarks: d, at most m.
        blocks: at most d. The residual is not known within a block, so more blocks avoid more rows that are alike.

    Returns:
        `(d,)` int64, all distinct.
    """
    time = -noise.clamp(min=torch.finfo(noise.dtype).tiny).log().to(rows.dtype)
    residual, factor = torch.ones_like(time), rows.new_zeros((0, len(rows)))
    chosen: list[Tensor] = []
    sizes = [len(part) for part in torch.arange(num_landmarks).tensor_split(min(blocks, num_landmarks))]
    for number, size in enumerate(sizes, 1):
        arrival, pivots = (time / residual).topk(size, largest=False)
        chosen.append(pivots)
        if number < len(sizes):
            added = factor_rows(rows, factor, pivots)
            time = (time - arrival.max() * residual).clamp(min=0).index_fill(0, pivots, torch.inf)
            residual = (residual - added.square().sum(dim=0)).clamp(min=SMALLEST)
            factor = torch.cat([factor, added])
    return torch.cat(chosen)


def factor_rows(rows: Tensor, factor: Tensor, pivots: Tensor) -> Tensor:
    """Return the rows of Lᵀ that a block of pivots adds to `factor`, `(b, m)` to `(k, m)`.

    With S all pivots, `L Lᵀ = K_S K_SS⁻¹ K_Sᵀ`.
    """
    own = factor[:, pivots].mT
    # Rows that equal each other, or earlier ones, would make the matrix singular.
    ridge = math.sqrt(torch.finfo(rows.dtype).eps) * torch.eye(len(pivots), dtype=rows.dtype)
    lower = torch.linalg.cholesky(gaussian_gram(rows[pivots]) - own @ own.mT + ridge)
    return torch.linalg.solve_triangular(lower, gaussian_kernel(rows[pivots], rows) - own @ factor, upper=False)
