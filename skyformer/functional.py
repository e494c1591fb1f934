"""Gaussian-kernel attention and its Nyström approximation, as functions of query, key and value.

Chen, Zeng, Ji, Yang, "Skyformer: Remodel Self-Attention with Gaussian Kernel and Nyström Method", NeurIPS 2021.
κ(x, y) = exp(−‖x − y‖² / 2).

Shapes: B batch, H heads, L queries, S keys, D landmarks, P head dimension. Masks are boolean, True = a real token.
"""

from typing import Literal

import torch
from torch import Tensor

from skyformer import ops
from skyformer.blocks import by_query_blocks
from skyformer.dropout import dropout
from skyformer.flash import gaussian_sum, has_flash
from skyformer.kernel import gaussian_gram, gaussian_kernel, product_dtype
from skyformer.kernel_product import gaussian_product, without_padding
from skyformer.linalg import newton_schulz_inverse, solve_positive_definite

__all__ = [
    "gaussian_attention",
    "gaussian_kernel",
    "landmark_system",
    "newton_schulz_inverse",
    "nystrom_gaussian_attention",
]

Solver = Literal["cholesky", "newton_schulz"]


def gaussian_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Kernelized attention, Eq. 3: `C V` with `C = κ(Q / p^¼, K / p^¼)`. No softmax, no row normaliser.

    O(L S) time. O(L + S) memory: by Triton kernels on a GPU (`ops`), on a CPU without dropout through torch's flash
    kernel (`flash.py`), else by blocks of queries, whose part of C is formed anew in the backward pass.

    Args:
        query: `(B, H, L, P)`, floating.
        key, value: `(B, H, S, P)`; the value's last size may differ.
        mask: `(B, S)` bool; a masked key contributes nothing.
        scale: factor on query and on key; default `P ** -0.25`.
        dropout_p: probability of dropping an entry of C (always, as in `scaled_dot_product_attention`).

    Returns:
        `(B, H, L, P)`, of the value's dtype.

    Raises:
        ValueError: for shapes or types that do not go together, naming the argument.
    """
    _check_inputs(query, key, value, mask)
    scale = query.shape[-1] ** -0.25 if scale is None else scale
    if ops.has_kernels(query, key, value):
        return ops.gaussian_attention(query, key, value, mask, scale, dropout_p).to(value.dtype)
    value = without_padding(value, mask)
    if dropout_p == 0:
        low_query, low_key, low_value = (x.to(product_dtype(query)) for x in (query, key, value))
        if has_flash(low_query):
            with torch.autocast(query.device.type, enabled=False):
                return gaussian_sum(low_query, low_key, low_value, mask, scale**2).to(value.dtype)
    query, key = query * scale, key * scale

    def attend(block: Tensor) -> Tensor:
        if dropout_p == 0:
            return gaussian_product(block, key, value)
        kernel = dropout(gaussian_kernel(block, key), dropout_p)
        return kernel @ value.to(kernel.dtype)

    return by_query_blocks(attend, query, key.shape[2]).to(value.dtype)


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

    Evaluated from right to left, so that nothing larger than (L + S) × D is formed: time and memory are
    O((L + S) D P), plus O(D³) for the D × D system, which is solved in float32 at least.

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
    _check_inputs(query, key, value, mask)
    _check_landmarks(query, landmarks, landmark_mask, ridge, solver)
    scale = query.shape[-1] ** -0.25 if scale is None else scale
    summary = gaussian_product(landmarks, key, value, y_scale=scale, mask=mask)
    if solver == "cholesky" and ops.has_solver(landmarks, summary):
        solution = ops.landmark_solution(landmarks, summary, landmark_mask, _raised(ridge, landmarks.shape[2]))
    else:
        if landmark_mask is not None:
            summary = summary * landmark_mask[:, None, :, None]
        system = landmark_system(landmarks, ridge, landmark_mask)
        with torch.autocast(query.device.type, enabled=False):
            solution = _solve(system, summary.to(system.dtype), solver)
    return gaussian_product(query, landmarks, solution, x_scale=scale)


def landmark_system(landmarks: Tensor, ridge: float, landmark_mask: Tensor | None = None) -> Tensor:
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


def _check_inputs(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() != 4:
            raise ValueError(f"{name} must be (B, H, tokens, P), got shape {tuple(tensor.shape)}")
        if tensor.shape[:2] != query.shape[:2]:
            raise ValueError(f"{name} has batch and heads {tuple(tensor.shape[:2])}, query {tuple(query.shape[:2])}")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query has head dimension {query.shape[-1]} and key {key.shape[-1]}; they must be equal")
    if key.shape[2] != value.shape[2]:
        raise ValueError(f"key has {key.shape[2]} tokens and value {value.shape[2]}; they must be equal")
    check_mask("mask", mask, (key.shape[0], key.shape[2]))


def check_mask(name: str, mask: Tensor | None, shape: tuple[int, int]) -> None:
    """Refuse a mask that is not boolean or not of `shape`.

    Raises:
        ValueError: naming the argument `name`.
    """
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise ValueError(f"{name} must be boolean (True = a real token), got {mask.dtype}")
    if tuple(mask.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(mask.shape)}")


def _check_landmarks(query: Tensor, landmarks: Tensor, landmark_mask: Tensor | None, ridge: float, solver: str) -> None:
    expected = (*query.shape[:2], "D", query.shape[-1])
    if landmarks.dim() != 4 or landmarks.shape[:2] != query.shape[:2] or landmarks.shape[-1] != query.shape[-1]:
        raise ValueError(f"landmarks must have shape {expected}, got {tuple(landmarks.shape)}")
    if landmarks.shape[2] < 1:
        raise ValueError("landmarks must hold at least one row")
    if not ridge > 0:
        raise ValueError(f"ridge={ridge!r} must be greater than 0")
    if solver not in ("cholesky", "newton_schulz"):
        raise ValueError(f"solver={solver!r} is not one of 'cholesky', 'newton_schulz'")
    check_mask("landmark_mask", landmark_mask, (landmarks.shape[0], landmarks.shape[2]))
