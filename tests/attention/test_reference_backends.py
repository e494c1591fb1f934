"""The slow references of six attention methods, in limits where the result is known exactly."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import reference_backends as reference
import torch
from torch import Tensor

EXAMPLES, HEADS, LENGTH, DIM = 2, 2, 12, 8
HOLES = torch.tensor([[True] * 4 + [False] * 2 + [True] * 6, [True] * 7 + [False] * 5])


@pytest.fixture(params=[None, HOLES], ids=["unmasked", "masked"])
def mask(request: pytest.FixtureRequest) -> Tensor | None:
    """(B, N)"""
    return request.param


@pytest.fixture
def query_key_value() -> list[Tensor]:
    """Three tensors (B, H, N, P)."""
    return list(random(3, EXAMPLES, HEADS, LENGTH, DIM))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def allowed_pairs(mask: Tensor | None) -> Tensor:
    """Which keys are real: (B, 1, N, N)."""
    real = torch.ones(EXAMPLES, LENGTH, dtype=torch.bool) if mask is None else mask
    return real[:, None, None, :].expand(EXAMPLES, 1, LENGTH, LENGTH)


def zero_masked(out: Tensor, mask: Tensor | None) -> Tensor:
    return out if mask is None else out * mask[:, None, :, None]


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed_pairs(mask))
    return zero_masked(out, mask)


@pytest.mark.parametrize(
    "attention",
    [
        partial(reference.nystromformer, num_landmarks=LENGTH, pinv="exact"),
        partial(reference.informer, noise=uniform(LENGTH, LENGTH), factor=1, num_queries=LENGTH),
        partial(reference.bigbird, noise=uniform(6, 6), block_size=2, num_random_blocks=3),
        partial(reference.bigbird, noise=uniform(3, 3), block_size=5, num_random_blocks=0),
    ],
    ids=["nystromformer", "informer", "bigbird", "bigbird-three-blocks"],
)
def test_softmax(attention: Callable[..., Tensor], query_key_value: list[Tensor], mask: Tensor | None) -> None:
    torch.testing.assert_close(attention(*query_key_value, mask), softmax_attention(*query_key_value, mask))


def test_iterative_pinv() -> None:
    """A well-conditioned matrix with rows that sum to one."""
    matrix = (3 * torch.eye(5, dtype=torch.float64) + random(5, 5) / 2).softmax(-1)
    torch.testing.assert_close(reference.iterative_pinv(matrix), torch.linalg.inv(matrix), atol=1e-6, rtol=0)


def test_segments() -> None:
    assert reference.segments(5, 2) == [[0, 1, 2], [3, 4]]
    assert reference.segments(3, 8) == [[0], [1], [2]]


def test_convolution(query_key_value: list[Tensor], mask: Tensor | None) -> None:
    query, key, value = query_key_value
    weight = random(HEADS, 5)
    attention = partial(reference.nystromformer, query, key, value, mask, 4)
    images = zero_masked(value, mask).permute(0, 3, 1, 2).reshape(-1, HEADS, LENGTH)
    expected = torch.nn.functional.conv1d(images, weight[:, None], padding=2, groups=HEADS)
    expected = expected.reshape(EXAMPLES, DIM, HEADS, LENGTH).permute(0, 2, 3, 1)
    torch.testing.assert_close(attention(conv_weight=weight) - attention(), zero_masked(expected, mask))


@pytest.mark.parametrize("heads", [1, HEADS])
def test_linformer_identity(query_key_value: list[Tensor], mask: Tensor | None, heads: int) -> None:
    """Softmax attention, as if masked tokens were zero keys and values that are attended."""
    identity = torch.eye(LENGTH, dtype=torch.float64).expand(heads, -1, -1)
    query, key, value = query_key_value
    expected = softmax_attention(query, zero_masked(key, mask), zero_masked(value, mask), None)
    out = reference.linformer(query, key, value, mask, identity, identity)
    torch.testing.assert_close(out, zero_masked(expected, mask))


def test_linformer_identity_on_real_places(query_key_value: list[Tensor]) -> None:
    mask = HOLES[:1].expand(EXAMPLES, -1)
    identity = torch.eye(LENGTH, dtype=torch.float64)[None, :, mask[0]]
    out = reference.linformer(*query_key_value, mask, identity, 2 * identity)
    torch.testing.assert_close(out, 2 * softmax_attention(*query_key_value, mask))


def test_informer_selects(query_key_value: list[Tensor], mask: Tensor | None) -> None:
    """As many rows of softmax attention as asked for; all other real tokens get the mean value."""
    out = reference.informer(*query_key_value, mask, uniform(LENGTH, LENGTH), factor=2, num_queries=3)
    means = softmax_attention(torch.zeros_like(out), *query_key_value[1:], mask)
    is_mean = torch.isclose(out, means).all(-1)
    is_softmax = torch.isclose(out, softmax_attention(*query_key_value, mask)).all(-1)
    assert (is_mean | is_softmax).all()
    assert ((~is_mean).sum(-1) == 3).all()


def test_informer_prefers_peaked() -> None:
    """Longer queries have the larger measure where all are along one line with the keys."""
    query = torch.arange(1, 1 + LENGTH, dtype=torch.float64)[None, None, :, None]
    key, value = random(2, 1, 1, LENGTH, 1)
    every_key = (torch.arange(LENGTH) / LENGTH + 0.5 / LENGTH).expand(LENGTH, -1)
    out = reference.informer(query, key, value, None, every_key, factor=LENGTH, num_queries=2)
    is_mean = torch.isclose(out, value.mean()).flatten()
    assert is_mean.tolist() == [True] * (LENGTH - 2) + [False] * 2


def test_informer_measure() -> None:
    """The sum over two sampled keys is divided by all three keys."""
    key = torch.tensor([[1.0], [2.0], [5.0]])
    assert reference.sparsity(torch.tensor([2.0]), key, [0, 2]) == pytest.approx(10 - 12 / 3)


def test_performer_nears_softmax(query_key_value: list[Tensor], mask: Tensor | None) -> None:
    query, key, value = query_key_value
    tokens = query / 2, key / 2, value
    out = reference.performer(*tokens, mask, random(20_000, DIM, seed=1), eps=1e-9)
    torch.testing.assert_close(out, softmax_attention(*tokens, mask), atol=0.05, rtol=0)


def test_performer_features() -> None:
    """Relative to the largest projection, which is 6; eps comes after."""
    features = reference.positive_features(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [1.0]]), eps=0.5)
    exponents = torch.tensor([[3 - 0.5 - 6, 1 - 0.5 - 6], [6 - 2 - 6, 2 - 2 - 6]])
    torch.testing.assert_close(features, exponents.exp() + 0.5)


def test_performer_eps(query_key_value: list[Tensor], mask: Tensor | None) -> None:
    """A large eps makes all weights equal."""
    query, key, value = query_key_value
    out = reference.performer(query, key, value, mask, torch.zeros(1, DIM, dtype=torch.float64), eps=1e12)
    torch.testing.assert_close(out, softmax_attention(torch.zeros_like(query), key, value, mask))


def test_performer_nears_relu_kernel(query_key_value: list[Tensor], mask: Tensor | None) -> None:
    """The mean over features is the arc-cosine kernel of order one."""
    query, key, value = query_key_value
    out = reference.performer(query, key, value, mask, random(20_000, DIM, seed=1), eps=0, kernel="relu")
    norms = query.norm(dim=-1)[..., :, None] * key.norm(dim=-1)[..., None, :]
    angle = (query @ key.mT / norms).acos()
    weights = norms * (angle.sin() + (math.pi - angle) * angle.cos()) * allowed_pairs(mask)
    expected = weights @ value / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(out, zero_masked(expected, mask), atol=0.03, rtol=0)


@pytest.mark.parametrize("rounds", [1, 3])
def test_reformer_one_bucket(query_key_value: list[Tensor], mask: Tensor | None, rounds: int) -> None:
    """Softmax attention to all other tokens, with normalised queries as keys."""
    query, _, value = query_key_value
    query[..., 0] = query[..., 0].abs()
    rotations = torch.eye(DIM, 1, dtype=torch.float64).expand(rounds, -1, -1)
    out = reference.reformer(query, value, mask, rotations, chunk_length=LENGTH)
    others = allowed_pairs(mask) & ~torch.eye(LENGTH, dtype=torch.bool)
    key = query / query.norm(dim=-1, keepdim=True)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=others)
    torch.testing.assert_close(out, zero_masked(expected, mask))


def test_reformer_alone(mask: Tensor | None) -> None:
    """Orthogonal queries in buckets of their own attend to themselves."""
    identity = torch.eye(LENGTH, dtype=torch.float64)
    query, value = identity.expand(EXAMPLES, HEADS, -1, -1), random(EXAMPLES, HEADS, LENGTH, LENGTH)
    out = reference.reformer(query, value, mask, identity.expand(2, -1, -1), chunk_length=3)
    torch.testing.assert_close(out, zero_masked(value, mask))


def test_reformer_rounds() -> None:
    """Counting keys out makes all rounds together softmax attention to the union of their neighbours."""
    query, value = random(2, 1, 1, LENGTH, DIM)
    rotations = random(4, DIM, 2, seed=1)
    out = reference.reformer(query, value, None, rotations, chunk_length=2)
    logits = query[0, 0] @ (query[0, 0] / query[0, 0].norm(dim=-1, keepdim=True)).T / math.sqrt(DIM)
    union = torch.zeros(LENGTH, LENGTH, dtype=torch.bool)
    for rotation in rotations:
        neighbours = reference.lsh_neighbours(reference.lsh_buckets(query[0, 0], rotation), chunk_length=2)
        for rank, others in enumerate(neighbours):
            union[rank, others] = True
    logits = logits.where(union, -torch.inf) - 1e5 * torch.eye(LENGTH)
    torch.testing.assert_close(out[0, 0], logits.softmax(-1) @ value[0, 0])


def test_reformer_neighbours() -> None:
    """In sorted order 1 3 | 4 0 | 2, of which 0 and 2 are in bucket 1."""
    neighbours = reference.lsh_neighbours([1, 0, 1, 0, 0], chunk_length=2)
    assert neighbours == [[0], [1, 3], [0, 2], [1, 3], [1, 3, 4]]


def test_bigbird_blocks() -> None:
    noise = torch.arange(64).reshape(8, 8)
    assert reference.attended_blocks(0, 8, noise, 1) == set(range(8))
    assert reference.attended_blocks(1, 8, noise, 2) == {0, 1, 2, 5, 6, 7}
    assert reference.attended_blocks(4, 8, noise, 1) == {0, 3, 4, 5, 6, 7}
    assert reference.attended_blocks(2, 4, noise, 1) == {0, 1, 2, 3}


def test_bigbird_places(query_key_value: list[Tensor], mask: Tensor | None) -> None:
    """Softmax attention within blocks cut by place, as a mask of pairs."""
    noise = uniform(6, 6)
    out = reference.bigbird(*query_key_value, mask, noise, block_size=2, num_random_blocks=0)
    pairs = allowed_pairs(mask).clone()
    for example, num_blocks in enumerate([6, 6] if mask is None else [6, 4]):
        for block in range(num_blocks):
            blocks = reference.attended_blocks(block, num_blocks, noise, 0)
            attended = torch.tensor([place // 2 in blocks for place in range(LENGTH)])
            pairs[example, :, 2 * block : 2 * block + 2] &= attended
    expected = torch.nn.functional.scaled_dot_product_attention(*query_key_value, attn_mask=pairs)
    torch.testing.assert_close(out, zero_masked(expected, mask))


@pytest.mark.parametrize(
    ("attention", "weights"),
    [
        (lambda q, k, v, mask, w: reference.nystromformer(q, k, v, mask, 2, conv_weight=w), [(1, 3)]),
        (lambda q, k, v, mask, w: reference.nystromformer(q, k, v, mask, 2, "exact", w), [(1, 3)]),
        (reference.linformer, [(1, 6, 2), (1, 6, 2)]),
        (lambda q, k, v, mask: reference.informer(q, k, v, mask, uniform(6, 6), 1), []),
        (lambda q, k, v, mask: reference.performer(q, k, v, mask, random(7, 2), 1e-2), []),
        (lambda q, k, v, mask: reference.performer(q, k, v, mask, random(7, 2), 1e-2, "relu"), []),
        (lambda q, k, v, mask: reference.reformer(q + k, v, mask, random(2, 2, 1), 2), []),
        (lambda q, k, v, mask: reference.bigbird(q, k, v, mask, uniform(6, 6), 1, 1), []),
    ],
    ids=["nystromformer", "nystromformer-exact", "linformer", "informer", "performer", "relu", "reformer", "bigbird"],
)
def test_gradients(attention: Callable[..., Tensor], weights: list[tuple[int, ...]]) -> None:
    """With respect to tokens and learned weights; one example of the batch has no real token."""
    mask = torch.tensor([[True, False, True, True, True, True], [False] * 6])
    tokens = [tensor.clone().requires_grad_() for tensor in random(3, 2, 1, 6, 2)]
    learned = [random(*shape).requires_grad_() for shape in weights]
    assert torch.autograd.gradcheck(lambda *x: attention(*x[:3], mask, *x[3:]), (*tokens, *learned))
