"""Skyformer's attention: the Nyström approximation of Gaussian-kernel attention.

Chen, Zeng, Ji, Yang, "Skyformer: Remodel Self-Attention with Gaussian Kernel and Nyström Method", NeurIPS 2021.
κ(x, y) = exp(−‖x − y‖² / 2).

Shapes: B batch, H heads, L queries, S keys, D landmarks, P head dimension. Masks are boolean, True = a real token.
"""

from typing import Literal

import torch
from torch import Tensor

from skyformer.ops import triton_dispatch
from skyformer.ops.checks import check_above_zero, check_inputs, check_mask
from skyformer.ops.kernel import gaussian_gram
from skyformer.ops.kernel_product import gaussian_product
from skyformer.ops.linalg import newton_schulz_inverse, solve_positive_definite

Solver = Literal["cholesky", "newton_schulz"]


def nystrom_gaussian_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    landmarks: Tensor,
    mask: Tensor | None = None,
    ridge: float = 0.1,
    solver: Solver = "cholesky",
    *,
    scale: float | None = None,
    landmark_mask: Tensor | None = None,
) -> Tensor:
    """Skyformer's attention, Eq. 4–6: `κ(Q, W) (κ(W, W) + γI)⁻¹ κ(W, K) V` with Q and K scaled by p^-¼.

    The product is evaluated from right to left, so no array is larger than (L + S) × D. Time and memory are O((L + S) D
    P), plus O(D³) for the D × D system. The system is solved in float32 at least.

    Args:
        query: `(B, H, L, P)`, floating.
        key, value: `(B, H, S, P)`; the value's last size may differ.
        landmarks: `(B, H, D, P)`, W: the chosen rows of [Q; K], already scaled.
        mask: `(B, S)` bool; a masked key contributes nothing.
        ridge: γ > 0.
        solver: `cholesky` (exact; Triton kernels eliminate instead) or `newton_schulz` (§4.4: six steps on
            D_M^-½ (M + γI) D_M^-½, from the published code's start, but scaled for each matrix by itself).
        scale: factor on query and on key; default `P ** -0.25`.
        landmark_mask: `(B, D)` bool; a masked landmark takes no part.

    Returns:
        `(B, H, L, P)`.

    Raises:
        ValueError: for shapes, types or settings that do not go together, naming the argument.
    """
    check_inputs(query, key, value, mask)
    check_landmarks(query, landmarks, landmark_mask, ridge, solver)
    scale = query.shape[-1] ** -0.25 if scale is None else scale
    summary = gaussian_product(landmarks, key, value, y_scale=scale, mask=mask)
    solution = landmark_solution(landmarks, summary, landmark_mask, ridge, solver)
    return gaussian_product(query, landmarks, solution, x_scale=scale)


def landmark_solution(
    landmarks: Tensor, summary: Tensor, landmark_mask: Tensor | None, ridge: float, solver: Solver
) -> Tensor:
    """`(κ(W, W) + γI)⁻¹ summary`, `(B, H, D, P)`, `(B, H, D, V)` → `(B, H, D, V)`, float32 at least.

    Rows of masked landmarks are zero.
    """
    if solver == "cholesky" and triton_dispatch.has_solver(landmarks, summary):
        return triton_dispatch.landmark_solution(landmarks, summary, landmark_mask, _raised(ridge, landmarks.shape[2]))
    if landmark_mask is not None:
        summary = summary * landmark_mask[:, None, :, None]
    system = regularized_gram(landmarks, ridge, landmark_mask)
    with torch.autocast(landmarks.device.type, enabled=False):
        return _solve(system, summary.to(system.dtype), solver)


def regularized_gram(landmarks: Tensor, ridge: float, landmark_mask: Tensor | None = None) -> Tensor:
    """`M + γI` with `M = κ(W, W)`, `(B, H, D, P)` → `(B, H, D, D)`, float32 (float64 for float64 landmarks).

    Masked landmarks become rows of (1 + γ)I. A γ below D times the machine epsilon (1.5e-5 for D = 128 in float32) is
    raised to it, so that the matrix stays positive definite.
    """
    kernel = gaussian_gram(landmarks)
    identity = torch.eye(landmarks.shape[-2], dtype=kernel.dtype, device=kernel.device)
    if landmark_mask is not None:
        kept = landmark_mask[:, None, :, None] & landmark_mask[:, None, None, :]
        kernel = torch.where(kept, kernel, identity)
    return kernel + _raised(ridge, landmarks.shape[-2], kernel.dtype) * identity


def _raised(ridge: float, size: int, dtype: torch.dtype = torch.float32) -> float:
    """γ, or more if a matrix of that size needs more to stay positive definite."""
    return max(ridge, size * torch.finfo(dtype).eps)


def _solve(system: Tensor, right: Tensor, solver: Solver) -> Tensor:
    if solver == "cholesky":
        return solve_positive_definite(system, right)
    normalised, degree = normalised_system(system)
    return degree * (newton_schulz_inverse(normalised, lemma_3=True) @ (degree * right))


def normalised_system(system: Tensor) -> tuple[Tensor, Tensor]:
    """`D_M^-½ (M + γI) D_M^-½`, whose eigenvalues lie in (0, 1] (Lemma 3), and the diagonal of D_M^-½ `(…, D, 1)`."""
    degree = system.sum(dim=-1, keepdim=True).rsqrt()
    return degree * system * degree.mT, degree


def check_landmarks(query: Tensor, landmarks: Tensor, landmark_mask: Tensor | None, ridge: float, solver: str) -> None:
    """Refuse landmarks and settings that do not go with the query.

    Raises:
        ValueError: naming the argument.
    """
    expected = (*query.shape[:2], "D", query.shape[-1])
    if landmarks.dim() != 4 or landmarks.shape[:2] != query.shape[:2] or landmarks.shape[-1] != query.shape[-1]:
        raise ValueError(f"landmarks must have shape {expected}, got {tuple(landmarks.shape)}")
    if landmarks.shape[2] < 1:
        raise ValueError("landmarks must hold at least one row")
    check_above_zero(ridge=ridge)
    if solver not in ("cholesky", "newton_schulz"):
        raise ValueError(f"solver={solver!r} is not one of 'cholesky', 'newton_schulz'")
    check_mask("landmark_mask", landmark_mask, (landmarks.shape[0], landmarks.shape[2]))
