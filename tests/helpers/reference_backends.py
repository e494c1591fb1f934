"""Six attention methods written out slowly from their definitions, in float64, as references for tests.

Every method takes `query, key, value` (B, H, N, P) and `mask` (B, N), True at real tokens, or None if all are real, and
returns (B, H, N, P), zero at masked tokens. Masked tokens are taken out before anything is computed: in each head of
each example, n real tokens are left. A real token's rank is its index among these, its place is its index in 0..N-1.
"""

import math
from collections.abc import Callable
from itertools import product
from typing import Literal

import torch
from torch import Tensor


def softmax(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention (Vaswani et al. 2017)."""
    return for_each_head(lambda q, k, v, places, head: softmax_weights(q, k) @ v, query, key, value, mask)


def nystromformer(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    num_landmarks: int,
    pinv: Literal["iterative", "exact"] = "iterative",
    conv_weight: Tensor | None = None,
) -> Tensor:
    """Nyströmformer (Xiong et al., AAAI 2021); `conv_weight` (H, 2 half + 1)."""
    inverse = {"iterative": iterative_pinv, "exact": torch.linalg.pinv}[pinv]

    def attend(query: Tensor, key: Tensor, value: Tensor, places: list[int], head: int) -> Tensor:
        groups = segments(len(places), num_landmarks)
        query_landmarks = torch.stack([query[ranks].mean(0) for ranks in groups])
        key_landmarks = torch.stack([key[ranks].mean(0) for ranks in groups])
        left = softmax_weights(query, key_landmarks)
        middle = softmax_weights(query_landmarks, key_landmarks)
        right = softmax_weights(query_landmarks, key)
        out = left @ inverse(middle) @ (right @ value)
        return out if conv_weight is None else out + convolution(value, places, conv_weight[head])

    return for_each_head(attend, query, key, value, mask)


def linformer(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, E: Tensor, F: Tensor) -> Tensor:
    """Linformer (Wang et al. 2020); `E` and `F` (H or 1, max_length, d)."""

    def attend(query: Tensor, key: Tensor, value: Tensor, places: list[int], head: int) -> Tensor:
        projected_key = projection(E, head, places).T @ key
        projected_value = projection(F, head, places).T @ value
        return softmax_weights(query, projected_key) @ projected_value

    return for_each_head(attend, query, key, value, mask)


def informer(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    noise: Tensor,
    factor: float,
    num_queries: int | None = None,
) -> Tensor:
    """ProbSparse attention of Informer (Zhou et al., AAAI 2021); `noise` (N, most samples) uniform in [0, 1)."""

    def attend(query: Tensor, key: Tensor, value: Tensor, places: list[int], head: int) -> Tensor:
        n = len(places)
        num_samples = max(1, min(math.ceil(factor * math.log(n)), n))
        samples = [[math.floor(draw * n) for draw in noise[rank, :num_samples].tolist()] for rank in range(n)]
        measures = [sparsity(query[rank], key, samples[rank]) for rank in range(n)]
        by_measure = sorted(range(n), key=lambda rank: measures[rank], reverse=True)
        active = by_measure[: min(num_queries or num_samples, n)]
        attended = softmax_weights(query, key) @ value
        return torch.stack([attended[rank] if rank in active else value.mean(0) for rank in range(n)])

    return for_each_head(attend, query, key, value, mask)


def performer(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    omega: Tensor,
    eps: float,
    kernel: Literal["softmax", "relu"] = "softmax",
) -> Tensor:
    """FAVOR+ attention of Performer (Choromanski et al., ICLR 2021); `omega` (m, P)."""

    def attend(query: Tensor, key: Tensor, value: Tensor, places: list[int], head: int) -> Tensor:
        scale = query.shape[-1] ** -0.25
        if kernel == "relu":
            query_features = (scale * query @ omega.T).relu() + eps
            key_features = (scale * key @ omega.T).relu() + eps
        else:
            query_features = torch.cat([positive_features(scale * row[None], omega, eps) for row in query])
            key_features = positive_features(scale * key, omega, eps)
        weights = query_features @ key_features.T
        return weights @ value / weights.sum(-1, keepdim=True)

    return for_each_head(attend, query, key, value, mask)


def reformer(query: Tensor, value: Tensor, mask: Tensor | None, rotations: Tensor, chunk_length: int) -> Tensor:
    """LSH attention of Reformer (Kitaev et al., ICLR 2020); `rotations` (R, P, b / 2)."""

    def attend(query: Tensor, key: Tensor, value: Tensor, places: list[int], head: int) -> Tensor:
        key = torch.stack([row / row.norm() if row.any() else torch.zeros_like(row) for row in key])
        rounds = [lsh_neighbours(lsh_buckets(query, rotation), chunk_length) for rotation in rotations]
        return torch.stack([lsh_row(rank, query, key, value, rounds) for rank in range(len(places))])

    return for_each_head(attend, query, query, value, mask)


def bigbird(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    noise: Tensor,
    block_size: int,
    num_random_blocks: int,
) -> Tensor:
    """BigBird-ITC (Zaheer et al., NeurIPS 2020); `noise` (max_blocks, max_blocks)."""

    def attend(query: Tensor, key: Tensor, value: Tensor, places: list[int], head: int) -> Tensor:
        num_blocks = math.ceil((places[-1] + 1) / block_size)
        rows = []
        for rank, place in enumerate(places):
            blocks = attended_blocks(place // block_size, num_blocks, noise, num_random_blocks)
            ranks = [other for other, key_place in enumerate(places) if key_place // block_size in blocks]
            rows.append(softmax_weights(query[rank], key[ranks]) @ value[ranks])
        return torch.stack(rows)

    return for_each_head(attend, query, key, value, mask)


def for_each_head(
    attend: Callable[[Tensor, Tensor, Tensor, list[int], int], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """(B, H, N, P) out of `attend(query, key, value, places, head)`, from real tokens (n, P) at `places` to (n, P)."""
    out = torch.zeros_like(value)
    examples, heads, length, _ = query.shape
    for example, head in product(range(examples), range(heads)):
        places = [place for place in range(length) if mask is None or mask[example, place]]
        if places:
            tokens = (tensor[example, head, places] for tensor in (query, key, value))
            out[example, head, places] = attend(*tokens, places, head)
    return out


def softmax_weights(query: Tensor, key: Tensor) -> Tensor:
    """Softmax over keys (k, P) of scaled products with queries (..., P): (..., k)."""
    return (query @ key.T / math.sqrt(query.shape[-1])).softmax(-1)


def segments(n: int, num_landmarks: int) -> list[list[int]]:
    """The ranks in each of min(num_landmarks, n) segments."""
    m = min(num_landmarks, n)
    return [[rank for rank in range(n) if rank * m // n == segment] for segment in range(m)]


def iterative_pinv(matrix: Tensor) -> Tensor:
    """Six steps towards the pseudo-inverse of one matrix (m, m)."""
    identity = torch.eye(len(matrix), dtype=matrix.dtype)
    inverse = matrix.T / (matrix.abs().sum(0).max() * matrix.abs().sum(1).max())
    for _ in range(6):
        near = matrix @ inverse
        inverse = inverse @ (13 * identity - near @ (15 * identity - near @ (7 * identity - near))) / 4
    return inverse


def convolution(value: Tensor, places: list[int], weight: Tensor) -> Tensor:
    """Sums of the values (n, P) at places around each real token, weighted by `weight` (2 half + 1): (n, P)."""
    half = len(weight) // 2
    rows = []
    for place in places:
        taps = [(tap, place + tap - half) for tap in range(len(weight)) if place + tap - half in places]
        rows.append(sum(weight[tap] * value[places.index(neighbour)] for tap, neighbour in taps))
    return torch.stack(rows)


def projection(weight: Tensor, head: int, places: list[int]) -> Tensor:
    """The rows at `places` of a head's projection, out of (H or 1, max_length, d): (n, d)."""
    return weight[head if len(weight) > 1 else 0, places]


def sparsity(query: Tensor, key: Tensor, samples: list[int]) -> float:
    """Informer's measure of one query (P) on the sampled keys out of (n, P), its sum divided by n."""
    scores = [(query @ key[rank]).item() / math.sqrt(len(query)) for rank in samples]
    return max(scores) - sum(scores) / len(key)


def positive_features(x: Tensor, omega: Tensor, eps: float) -> Tensor:
    """FAVOR+ features (k, m) of scaled tokens (k, P), relative to the largest projection of them all."""
    projected = x @ omega.T
    return torch.exp(projected - x.square().sum(-1, keepdim=True) / 2 - projected.max()) + eps


def lsh_buckets(query: Tensor, rotation: Tensor) -> list[int]:
    """The bucket of each query (n, P) under `rotation` (P, b / 2); of equal entries, the first."""
    projected = query @ rotation
    return [entries.index(max(entries)) for entries in torch.cat([projected, -projected], -1).tolist()]


def lsh_neighbours(buckets: list[int], chunk_length: int) -> list[list[int]]:
    """For each rank, the ranks in its bucket and in its chunk or the one before."""
    ranks = range(len(buckets))
    order = sorted(ranks, key=lambda rank: (buckets[rank], rank))
    chunks = [order.index(rank) // chunk_length for rank in ranks]
    return [[j for j in ranks if buckets[j] == buckets[i] and chunks[i] - chunks[j] in (0, 1)] for i in ranks]


def lsh_row(rank: int, query: Tensor, key: Tensor, value: Tensor, rounds: list[list[list[int]]]) -> Tensor:
    """The output (P) of one token, from all of its example (n, P) and each round's neighbours of each token."""
    normalisers, outputs = [], []
    for neighbours in rounds:
        logits = torch.stack([lsh_logit(rank, other, query, key, rounds) for other in neighbours[rank]])
        normaliser = logits.logsumexp(0)
        normalisers.append(normaliser)
        outputs.append((logits - normaliser).exp() @ value[neighbours[rank]])
    log_weights = torch.stack(normalisers)
    return (log_weights - log_weights.logsumexp(0)).exp() @ torch.stack(outputs)


def lsh_logit(rank: int, other: int, query: Tensor, key: Tensor, rounds: list[list[list[int]]]) -> Tensor:
    """The logit () between two tokens that share a chunk and bucket in at least one round."""
    count = sum(other in neighbours[rank] for neighbours in rounds)
    logit = query[rank] @ key[other] / math.sqrt(query.shape[-1]) - math.log(count)
    return logit - 1e5 if other == rank else logit


def attended_blocks(block: int, num_blocks: int, noise: Tensor, num_random_blocks: int) -> set[int]:
    """The key blocks that a query block attends in BigBird."""
    everything, ends = set(range(num_blocks)), {0, num_blocks - 1}
    if block in ends:
        return everything
    fixed = ends | {block - 1, block, block + 1}
    by_noise = sorted(everything - fixed, key=lambda other: noise[block, other].item(), reverse=True)
    return fixed | set(by_noise[:num_random_blocks])
