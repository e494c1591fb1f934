"""Softmax attention approximated through Skyformer's landmarks, for a model that was trained with softmax.

With Q and K scaled by p^-¼, the softmax kernel is the Gaussian one between two diagonal factors (Skyformer, Eq. 3):

    exp(q·k) = exp(‖q‖² / 2) κ(q, k) exp(‖k‖² / 2)

The rows of softmax are normalised, so that the factor of the query cancels. With C = κ(Q, K) and w = exp(‖k‖² / 2):

    softmax(Q Kᵀ) V = C (w V) / C w

Here C̃ = κ(Q, W) (κ(W, W) + γI)⁻¹ κ(W, K), the Nyström approximation, replaces C in both.

Shapes: B batch, H heads, L queries, S keys, D landmarks, P head dimension. Masks are boolean, True = a real token.
"""

import torch
from torch import Tensor

from skyformer.ops.checks import check_inputs
from skyformer.ops.kernel import at_least_float32, half_square
from skyformer.ops.kernel_product import gaussian_product
from skyformer.ops.nystrom import Solver, check_landmarks, landmark_solution
from skyformer.ops.recompute import by_query_blocks


def matched_keys(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
    """Shift the keys so that their mean is that of the queries, `(B, H, N, P)` twice → `(B, H, N, P)`.

    softmax(Q Kᵀ) stays the same: a shift c adds q·c to all scores of q. The Gaussian kernel does not: between distant
    clouds of queries and keys it is nearly zero, and landmarks approximate it badly.

    Args:
        query, key: `(B, H, N, P)`, floating.
        mask: `(B, N)` bool; masked tokens count in neither mean.

    Returns:
        The shifted keys, float32 at least.
    """
    exact = at_least_float32(key)
    query, key = query.to(exact), key.to(exact)
    if mask is None:
        return key + (query.mean(dim=2, keepdim=True) - key.mean(dim=2, keepdim=True))
    tokens = mask[:, None, :, None]
    difference = (query - key).masked_fill(~tokens, 0)
    return key + difference.sum(dim=2, keepdim=True) / tokens.sum(dim=2, keepdim=True).clamp(min=1)


def nystrom_softmax_attention(
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
    """`C̃ (w V) / C̃ w`, which is `softmax(Q Kᵀ / √p) V` where C̃ is κ(Q, K). O((L + S) D P) time.

    Only ratios within a row count. So the exponents of w and of κ(q, W) are taken relative to their largest: neither
    overflows, and a query far from all landmarks does not divide zero by zero. In float32 a key whose ‖k‖² / 2 is more
    than 87 below the largest underflows.

    C̃ may have negative entries, unlike softmax. Two rules bound their effect:

    - A row sum that is not positive beyond rounding cannot normalise. Its query takes the mean of the values, which is
      the result of equal scores.
    - Each result is clamped to the range of the values of its feature. The exact result is a weighted mean of them, so
      the clamp never increases the error.

    Args:
        query: `(B, H, L, P)`, floating.
        key, value: `(B, H, S, P)`; the value's last size may differ. `matched_keys` makes the approximation better.
        landmarks: `(B, H, D, P)`, W: the chosen rows of [Q; K], already scaled.
        mask: `(B, S)` bool; a masked key contributes nothing. Without a single key, an example takes the mean of all.
        ridge: γ > 0.
        solver: see `nystrom_gaussian_attention`.
        scale: factor on query and on key; default `P ** -0.25`.
        landmark_mask: `(B, D)` bool; a masked landmark takes no part.

    Returns:
        `(B, H, L, P)`, of the value's dtype; computed in float32 at least.

    Raises:
        ValueError: for shapes, types or settings that do not go together, naming the argument.
    """
    check_inputs(query, key, value, mask)
    check_landmarks(query, landmarks, landmark_mask, ridge, solver)
    scale = query.shape[-1] ** -0.25 if scale is None else scale
    dtype, exact = value.dtype, at_least_float32(query)
    query, key, value, landmarks = (x.to(exact) for x in (query, key, value, landmarks))
    with torch.autocast(query.device.type, enabled=False):
        tokens = query.new_ones(value.shape[:1] + value.shape[2:3], dtype=torch.bool) if mask is None else mask
        tokens = (tokens | ~tokens.any(dim=1, keepdim=True))[:, None, :, None]
        weights = _weights(key * scale, tokens)
        kept = value.masked_fill(~tokens, 0)
        summary = gaussian_product(landmarks, key, torch.cat([weights * kept, weights], dim=-1), y_scale=scale)
        solution = landmark_solution(landmarks, summary, landmark_mask, ridge, solver)
        solution = torch.cat([solution, solution[..., -1:].detach().abs()], dim=-1)  # to estimate the rounding error
        norms = half_square(landmarks).mT
        if landmark_mask is not None:
            norms = norms.masked_fill(~landmark_mask[:, None, None, :], torch.finfo(exact).max)
        mean = kept.sum(dim=2, keepdim=True) / tokens.sum(dim=2, keepdim=True)
        smallest = value.masked_fill(~tokens, float("inf")).amin(dim=2, keepdim=True)
        largest = value.masked_fill(~tokens, float("-inf")).amax(dim=2, keepdim=True)

        def attend(block: Tensor) -> Tensor:
            shares = ((block * scale) @ landmarks.mT - norms).softmax(dim=-1)
            sums, total, magnitude = (shares @ solution).split([value.shape[-1], 1, 1], dim=-1)
            is_sound = total > magnitude * (torch.finfo(exact).eps * landmarks.shape[2])
            quotient = torch.where(is_sound, sums / torch.where(is_sound, total, 1), mean)
            return quotient.maximum(smallest).minimum(largest)

        return by_query_blocks(attend, query, landmarks.shape[2]).to(dtype)


def _weights(key: Tensor, tokens: Tensor) -> Tensor:
    """`exp(‖k‖² / 2)` over the largest of a head, `(B, H, S, P)` → `(B, H, S, 1)`; zero where `tokens` is False."""
    exponent = half_square(key).masked_fill(~tokens, float("-inf"))
    return (exponent - exponent.detach().amax(dim=2, keepdim=True)).exp()
