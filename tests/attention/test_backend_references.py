"""Every backend, output and gradient, against its literal float64 form, with and without padding; and its limits."""

import pytest
import torch
from backend_cases import CASES, MAX_LENGTH, B, H, N, P, draw, masks, output_and_gradients
from torch import Tensor

from skyformer.attention import (
    BigBirdAttention,
    InformerAttention,
    LinformerAttention,
    NystromformerAttention,
    PerformerAttention,
    ReformerAttention,
    SoftmaxAttention,
)


@pytest.mark.parametrize("kind", masks())
@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients(name, kind):
    case, mask = CASES[name], masks()[kind]
    torch.manual_seed(0)
    backend = case.make(H, P, MAX_LENGTH, **case.settings).double().eval()
    weights = list(backend.parameters())
    actual = output_and_gradients(backend, weights, mask)
    expected = output_and_gradients(lambda *inputs: case.reference(backend, *inputs), weights, mask)
    for found, wanted in zip(actual, expected, strict=True):
        # Its matrix is nearly singular for these inputs.
        tolerance = 1e-6 if name == "nystromformer, exact" else 1e-9
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance / 100)


def in_turn(count: int) -> Tensor:
    """The first tokens of each example are real, this many."""
    return torch.arange(N) < torch.full((B, 1), count)


LIMITS = {
    "nystromformer": (NystromformerAttention, {"num_landmarks": N, "pinv": "exact", "conv_kernel": 0}),
    "informer": (InformerAttention, {"num_queries": N}),
    "bigbird": (BigBirdAttention, {"block_size": 16}),
}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", LIMITS)
def test_limit_is_softmax_attention(name, padded):
    """Every token a landmark, every query active, every block attended to."""
    make, settings = LIMITS[name]
    mask = in_turn(40) if padded else None
    query, key, value = draw()
    limit = make(H, P, MAX_LENGTH, **settings).double().eval()(query, key, value, mask)
    softmax = SoftmaxAttention(H, P, MAX_LENGTH)(query, key, value, mask)
    real = slice(0, 40) if padded else slice(None)
    torch.testing.assert_close(limit[:, :, real], softmax[:, :, real], rtol=1e-6, atol=1e-7)


def test_linformer_with_identity_projections_is_softmax_attention():
    backend = LinformerAttention(H, P, N, projected_length=N).double()
    with torch.no_grad():
        backend.key_projection.copy_(torch.eye(N))
        backend.value_projection.copy_(torch.eye(N))
    inputs = draw()
    torch.testing.assert_close(backend(*inputs, None), SoftmaxAttention(H, P, N)(*inputs, None))


def test_reformer_with_one_bucket_is_softmax_attention_on_the_others():
    """A zero rotation leaves all tokens in the first bucket; one chunk holds them all."""
    backend = ReformerAttention(H, P, N, num_buckets=2, num_rounds=1, chunk_length=64).double().eval()
    backend.eval_rotations.zero_()
    query, _, value = draw()
    logits = query @ torch.nn.functional.normalize(query, dim=-1).mT * P**-0.5
    logits = logits.masked_fill(torch.eye(N, dtype=torch.bool), float("-inf"))
    torch.testing.assert_close(backend(query, query, value, None), logits.softmax(dim=-1) @ value)


def test_performer_with_many_features_nears_softmax_attention():
    query, key, value = (x / 2 for x in draw())
    errors = []
    for count in (64, 16384):
        backend = PerformerAttention(H, P, N, num_features=count, eps=1e-12).double().eval()
        exact = SoftmaxAttention(H, P, N)(query, key, value, None)
        errors.append((backend(query, key, value, None) - exact).norm() / exact.norm())
    assert errors[1] < 0.1
    assert errors[1] < errors[0] / 3


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_finite_differences(name):
    case = CASES[name]
    backend = case.make(1, 4, 8, **{**case.settings, **SMALL.get(name.split(",")[0], {})}).double().eval()
    inputs = [x[:1, :1, :7, :4].clone().requires_grad_() for x in draw()]
    mask = torch.tensor([[True] * 6 + [False]])
    used = inputs if not backend.shares_query_and_key else [inputs[0], inputs[2]]

    def function(*tensors: Tensor) -> Tensor:
        query, *keys, value = tensors
        return backend(query, keys[0] if keys else query, value, mask)[:, :, :6]

    assert torch.autograd.gradcheck(function, used)


SMALL = {"nystromformer": {"num_landmarks": 3, "conv_kernel": 3}, "linformer": {"projected_length": 3}}
