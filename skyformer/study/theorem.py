"""What Theorem 2 promises, and what the choice of landmarks makes of it."""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from skyformer.kernel import gaussian_kernel
from skyformer.study.inputs import Heads
from skyformer.study.landmark_choices import CHOICES
from skyformer.study.matrices import leverage_scores, operator_norm

FAILURE = 0.1  # δ: the bound holds with probability 1 − δ
LAMBDAS = torch.logspace(-5, 0, 11, dtype=torch.float64).tolist()  # λ / ‖C‖, ε in the theorem


def scaled_rows(heads: Heads) -> Tensor:
    """[Q; K] over p^¼, `(1, H, n, p)` twice → `(H, 2n, p)` float64."""
    query, key, _ = heads
    return torch.cat([query[0], key[0]], dim=1).double() * query.shape[-1] ** -0.25


@torch.no_grad()
def measure_bound(inputs: dict[int, Heads]) -> Iterator[dict[str, Any]]:
    """A row for each length and λ, of the head that needs the most: `d_stat`, and `bound`, the number of landmarks with
    which `‖C̃ − C‖ ≤ λ` with probability 1 − δ.

    Theorem 2: `d ≥ C (d_stat / β) ln(n / δ)` for a constant C that the paper does not state; here it is one. β is the
    largest for which uniform sampling is β-approximate: `d_stat / β = 2n max_i ℓ_i(λ)`, ℓ the ridge leverage scores
    of C̄ = κ([Q; K], [Q; K]).
    """
    for length, heads in inputs.items():
        print(f"n = {length:,}: the theorem's bound", file=sys.stderr)
        found = [_needed(head, length) for head in scaled_rows(heads)]
        for ratio, needed in zip(LAMBDAS, zip(*found, strict=True), strict=True):
            d_stat, coherence = (max(values) for values in zip(*needed, strict=True))
            yield {
                "length": length, "relative": ratio, "d_stat": d_stat, "bound": coherence * math.log(length / FAILURE)
            }  # fmt: skip


def _needed(rows: Tensor, length: int) -> list[tuple[float, float]]:
    """(d_stat, d_stat / β) of one head's [Q; K], for each λ."""
    completed = gaussian_kernel(rows, rows)
    norm = matrix_norm(completed[:length, length:]).item()
    scores = (leverage_scores(completed, ratio * norm) for ratio in LAMBDAS)
    return [(score.sum().item(), len(rows) * score.max().item()) for score in scores]


@torch.no_grad()
def measure_choices(
    inputs: dict[int, Heads], sizes: Sequence[int], ridges: Sequence[float], draws: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """A row for each choice of landmarks, length, d, γ and draw: `relative`, ‖C̃ − C‖₂ / ‖C‖₂ with C = κ(Q, K), and
    `seconds` that the choice took; both the mean over the heads.
    """
    for length, heads in inputs.items():
        rows = scaled_rows(heads)
        query, key = rows[:, :length], rows[:, length:]
        kernel = gaussian_kernel(query, key)
        norm = matrix_norm(kernel).clamp(min=torch.finfo(kernel.dtype).eps)
        for name, choose in CHOICES.items():
            print(f"n = {length:,}: landmarks by {name}", file=sys.stderr)
            for num_landmarks in (size for size in sizes if size < length):
                for draw in draws:
                    generator = Generator().manual_seed(draw)
                    start = time.perf_counter()
                    landmarks = torch.stack([choose(head, num_landmarks, generator) for head in rows])
                    seconds = (time.perf_counter() - start) / len(rows)
                    place = {"length": length, "num_landmarks": num_landmarks, "draw": draw, "choice": name}
                    for ridge in ridges:
                        error = nystrom_error(query, key, kernel, landmarks, ridge) / norm
                        yield {**place, "ridge": ridge, "relative": error.mean().item(), "seconds": seconds}


def nystrom_error(query: Tensor, key: Tensor, kernel: Tensor, landmarks: Tensor, ridge: float) -> Tensor:
    """‖κ(Q, W) (κ(W, W) + γI)⁻¹ κ(W, K) − C‖₂, `(H,)`; rows `(H, n, p)`, W `(H, d, p)`, C `(H, n, n)`.

    Landmarks that nearly coincide make κ(W, W) singular without a γ, so it is solved by its eigenvectors, those of
    eigenvalues below 1e-12 of the largest left out.
    """
    left, right = gaussian_kernel(query, landmarks), gaussian_kernel(landmarks, key)
    eigenvalues, vectors = torch.linalg.eigh(gaussian_kernel(landmarks, landmarks))
    kept = eigenvalues > 1e-12 * eigenvalues[:, -1:]
    inverse = torch.where(kept, 1 / (eigenvalues + ridge), 0.0)
    left, right = (left @ vectors) * inverse[:, None], vectors.mT @ right
    return operator_norm(
        lambda x: left @ (right @ x) - kernel @ x, lambda y: right.mT @ (left.mT @ y) - kernel.mT @ y, kernel
    )


def matrix_norm(matrix: Tensor) -> Tensor:
    """‖A‖₂ of `(…, n, n)`, `(…)`."""
    return operator_norm(lambda x: matrix @ x, lambda y: matrix.mT @ y, matrix)
