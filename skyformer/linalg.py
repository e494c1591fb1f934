"""The two ways to apply (M + γI)⁻¹: an exact Cholesky solve, and the paper's Newton–Schulz iteration."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _SolvePositiveDefinite(torch.autograd.Function):
    """`A⁻¹ X`. The backward pass reuses the factor; autograd through Cholesky would cost several times D³ more."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, right: Tensor) -> Tensor:
        # The status is left unread: that would make a GPU wait. The matrix is definite by construction (its ridge), so
        # only non-finite inputs fail, and they show in the loss.
        factor, _ = torch.linalg.cholesky_ex(matrix)
        solution = torch.cholesky_solve(right, factor)
        ctx.save_for_backward(factor, solution)
        return solution

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        factor, solution = ctx.saved_tensors
        grad_right = torch.cholesky_solve(grad, factor)
        return -grad_right @ solution.mT, grad_right


def solve_positive_definite(matrix: Tensor, right: Tensor) -> Tensor:
    """`matrix⁻¹ right` for symmetric positive definite `(…, D, D)` and `(…, D, P)`, by Cholesky."""
    return _SolvePositiveDefinite.apply(matrix, right)


def newton_schulz_inverse(matrix: Tensor, iterations: int = 6) -> Tensor:
    """Approximate pseudo-inverse of matrices `(…, D, D)`.

    Section 4.4 of Skyformer and Eq. 14 of Nyströmformer, after Razavi et al. 2014: `Z ← ¼ Z (13 I − A Z (15 I − A Z
    (7 I − A Z)))`, from `Z = Aᵀ / (‖A‖₁ ‖A‖∞)`, scaled for each matrix by itself. Third order near the solution; small
    singular values (clustered landmarks, small γ) need more than the papers' six steps. Four products a step: O(D³).
    """
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    columns, rows = (matrix.abs().sum(dim=dim).amax(dim=-1)[..., None, None] for dim in (-2, -1))
    inverse = matrix.mT / (columns * rows)
    for _ in range(iterations):
        product = matrix @ inverse
        inner = 15 * identity - product @ (7 * identity - product)
        inverse = inverse @ (13 * identity - product @ inner) / 4
    return inverse
