"""Landmark choices for a Nyström approximation, and Theorem 2's bound on the error.

All choices take `rows (2n, p)`, first the n scaled queries and then the n scaled keys of one head, d, and a generator,
and return W `(d, p)`. κ(x, y) = exp(−‖x − y‖² / 2).
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Generator, Tensor

from skyformer.ops.kernel import gaussian_kernel
from skyformer.ops.landmarks import half_and_half_rows, segment_means, uniform_rows
from skyformer.ops.linalg import matrix_norm, operator_norm
from skyformer.ops.nystrom import nystrom_gaussian_attention
from skyformer.study.inputs import Heads
from skyformer.study.matrices import leverage_scores
from skyformer.study.pivots import pivoted_rows

LandmarkChoice = Callable[[Tensor, int, Generator], Tensor]
LLOYD_STEPS = 10
CANDIDATES = 4  # of the strided choice, for each landmark


def uniform(rows: Tensor, num_landmarks: int, generator: Generator) -> Tensor:
    """Rows drawn uniformly, without replacement (Skyformer, §4.2)."""
    noise = torch.rand((1, 2, len(rows) // 2), generator=generator)
    chosen, _ = uniform_rows(noise, None, num_landmarks)
    return rows[chosen[0]]


def half_and_half(rows: Tensor, num_landmarks: int, generator: Generator) -> Tensor:
    """Half of them queries, half of them keys, with replacement, as in Skyformer's published code."""
    noise = torch.rand((1, num_landmarks), generator=generator)
    chosen, _ = half_and_half_rows(noise, torch.ones((1, len(rows) // 2), dtype=torch.bool))
    return rows[chosen[0]]


def means_of_segments(rows: Tensor, num_landmarks: int, generator: Generator) -> Tensor:
    """Means over contiguous segments of the sequence, half of them of queries, half of keys (Nyströmformer, §3.2)."""
    queries, keys = rows.view(1, 2, -1, rows.shape[1]).split(1, dim=1)
    half = num_landmarks // 2
    parts = [segment_means(queries, None, half), segment_means(keys, None, num_landmarks - half)]
    return torch.cat([means[0, 0] for means, _ in parts])


def k_means(rows: Tensor, num_landmarks: int, generator: Generator) -> Tensor:
    """Centres after ten steps of Lloyd's from uniformly drawn rows (Zhang, Tsang, Kwok, ICML 2008)."""
    centres = uniform(rows, num_landmarks, generator)
    for _ in range(LLOYD_STEPS):
        nearest = torch.cdist(rows, centres).argmin(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, rows)
        counts = nearest.bincount(minlength=num_landmarks)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return centres


def farthest_point(rows: Tensor, num_landmarks: int, generator: Generator) -> Tensor:
    """Start from a random row, and repeatedly add the row farthest from those chosen (Gonzalez 1985)."""
    chosen = torch.randint(len(rows), (1,), generator=generator)
    distance = torch.full((len(rows),), math.inf, dtype=rows.dtype)
    places = []
    for _ in range(num_landmarks):
        places.append(chosen)
        distance = distance.minimum((rows - rows[chosen]).square().sum(dim=1))
        chosen = distance.argmax()[None]
    return rows[torch.cat(places)]


def strided_farthest_point(rows: Tensor, num_landmarks: int, generator: Generator) -> Tensor:
    """The same among every s-th row of [Q; K] from a random start: at least four rows for each landmark."""
    stride = max(1, len(rows) // (CANDIDATES * num_landmarks))
    start = int(torch.randint(stride, (), generator=generator))
    return farthest_point(rows[start::stride], num_landmarks, generator)


def pivoted(rows: Tensor, num_landmarks: int, generator: Generator) -> Tensor:
    """Randomly pivoted Cholesky in eight blocks (`pivoted_rows`)."""
    return rows[pivoted_rows(rows, torch.rand(len(rows), generator=generator), num_landmarks)]


def ridge_leverage(rows: Tensor, num_landmarks: int, generator: Generator) -> Tensor:
    """Drawn with probabilities that follow the rows' ridge leverage scores, estimated recursively.

    Musco and Musco, NeurIPS 2017, Algorithm 3 with a fixed number of landmarks. The scores of a set of rows are
    estimated from a weighted sample of half of it. This recursion ends at a set of d rows. The ridge of a level is the
    trace of the sample's kernel without its k largest eigenvalues, divided by k = d / (4 ln d).
    """
    order = torch.randperm(len(rows), generator=generator)
    sizes = [len(rows)]
    while sizes[-1] > num_landmarks:
        sizes.append(max(num_landmarks, math.ceil(sizes[-1] / 2)))
    sample, weights = order[: sizes[-1]], torch.ones(sizes[-1], dtype=rows.dtype)
    for size in reversed(sizes[:-1]):
        scores = estimated_scores(rows[order[:size]], rows[sample], weights, num_landmarks)
        if size == len(rows):
            drawn = torch.multinomial(scores + 1e-12, num_landmarks, generator=generator)
            return rows[order[drawn]]
        probability = (scores * math.log(num_landmarks)).clamp(max=1)
        kept = torch.rand(size, dtype=rows.dtype, generator=generator) < probability
        if not kept.any():  # all scores are next to nothing: rows that coincide
            kept = torch.arange(size) < num_landmarks
            probability = torch.full_like(probability, num_landmarks / size)
        sample, weights = order[:size][kept], probability[kept].rsqrt()
    return rows[sample]


def estimated_scores(rows: Tensor, sample: Tensor, weights: Tensor, num_landmarks: int) -> Tensor:
    """Ridge leverage scores of `rows (m, p)` from weighted sample rows `(s, p)`, `(s,)` → `(m,)`, at most 1.

    `(1/λ) (K − K S (Sᵀ K S + λI)⁻¹ Sᵀ K)_ii`, S the weighted sample (Musco and Musco, Lemma 6 without its constant).
    """
    cross = gaussian_kernel(rows, sample) * weights
    inner = gaussian_kernel(sample, sample) * weights * weights[:, None]
    eigenvalues, vectors = torch.linalg.eigh(inner)
    rank = math.ceil(num_landmarks / (4 * math.log(num_landmarks)))
    left_out = eigenvalues[: max(0, len(sample) - rank)]  # ascending
    ridge = (left_out.clamp(min=0).sum() / rank).clamp(min=1e-6)
    projected = cross @ vectors
    explained = (projected.square() / (eigenvalues.clamp(min=0) + ridge)).sum(dim=1)
    return ((1 - explained) / ridge).clamp(0, 1)


CHOICES: dict[str, LandmarkChoice] = {
    "uniform": uniform,
    "half and half": half_and_half,
    "segment means": means_of_segments,
    "k-means": k_means,
    "ridge leverage": ridge_leverage,
    "farthest point": farthest_point,
    "strided farthest point": strided_farthest_point,
    "pivoted": pivoted,
}


FAILURE = 0.1  # δ: the bound holds with probability 1 − δ
LAMBDAS = torch.logspace(-5, 0, 11, dtype=torch.float64).tolist()  # λ / ‖C‖, ε in the theorem


def scaled_rows(heads: Heads) -> Tensor:
    """[Q; K] over p^¼, `(1, H, n, p)` twice → `(H, 2n, p)` float64."""
    query, key, _ = heads
    return torch.cat([query[0], key[0]], dim=1).double() * query.shape[-1] ** -0.25


@torch.no_grad()
def measure_bound(inputs: dict[int, Heads]) -> Iterator[dict[str, Any]]:
    """Return a row for each length and λ, of the head with the largest bound.

    `d_stat` is the statistical dimension. With `bound` landmarks, `‖C̃ − C‖ ≤ λ` with probability 1 − δ.

    Theorem 2: `d ≥ C (d_stat / β) ln(n / δ)` for a constant C that the paper does not state; here it is one. β is the
    largest for which uniform sampling is β-approximate: `d_stat / β = 2n max_i ℓ_i(λ)`, ℓ the ridge leverage scores
    of C̄ = κ([Q; K], [Q; K]).
    """
    for length, heads in inputs.items():
        print(f"n = {length:,}: the theorem's bound", file=sys.stderr)
        found = [_needed(head, length) for head in scaled_rows(heads)]
        for ratio, needed in zip(LAMBDAS, zip(*found, strict=True), strict=True):
            d_stat, coherence = max(needed, key=itemgetter(1))
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
    """Return a row for each choice of landmarks, length, d, γ and draw.

    `relative` is ‖C̃ − C‖₂ / ‖C‖₂ with C = κ(Q, K). `seconds` is the CPU time of the choice, and `seconds_to_attend`
    that of Skyformer's attention with these landmarks, forward. All are means over the heads, in float64.
    """
    for length, heads in inputs.items():
        rows = scaled_rows(heads)
        query, key, value = rows[:, :length], rows[:, length:], heads[2].double()
        kernel = gaussian_kernel(query, key)
        norm = matrix_norm(kernel).clamp(min=torch.finfo(kernel.dtype).eps)
        for name, choose in CHOICES.items():
            print(f"n = {length:,}: landmarks by {name}", file=sys.stderr)
            for num_landmarks in (size for size in sizes if size < length):
                for draw in draws:
                    generator = Generator().manual_seed(draw)
                    start = time.process_time()
                    landmarks = torch.stack([choose(head, num_landmarks, generator) for head in rows])
                    chosen = time.process_time()
                    nystrom_gaussian_attention(query[None], key[None], value, landmarks[None], scale=1.0)
                    place = {
                        "length": length, "num_landmarks": num_landmarks, "draw": draw, "choice": name,
                        "seconds": (chosen - start) / len(rows),
                        "seconds_to_attend": (time.process_time() - chosen) / len(rows),
                    }  # fmt: skip
                    for ridge in ridges:
                        error = nystrom_error(query, key, kernel, landmarks, ridge) / norm
                        yield {**place, "ridge": ridge, "relative": error.mean().item()}


def nystrom_error(query: Tensor, key: Tensor, kernel: Tensor, landmarks: Tensor, ridge: float) -> Tensor:
    """‖κ(Q, W) (κ(W, W) + γI)⁻¹ κ(W, K) − C‖₂, `(H,)`; rows `(H, n, p)`, W `(H, d, p)`, C `(H, n, n)`.

    Without γ, nearly equal landmarks make κ(W, W) singular. So it is solved by its eigenvectors, without those of
    eigenvalues below 1e-12 of the largest.
    """
    left, right = gaussian_kernel(query, landmarks), gaussian_kernel(landmarks, key)
    eigenvalues, vectors = torch.linalg.eigh(gaussian_kernel(landmarks, landmarks))
    kept = eigenvalues > 1e-12 * eigenvalues[:, -1:]
    inverse = torch.where(kept, 1 / (eigenvalues + ridge), 0.0)
    left, right = (left @ vectors) * inverse[:, None], vectors.mT @ right
    return operator_norm(
        lambda x: left @ (right @ x) - kernel @ x, lambda y: right.mT @ (left.mT @ y) - kernel.mT @ y, kernel
    )
