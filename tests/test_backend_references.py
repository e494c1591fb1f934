"""Every backend, output and gradient, against a literal float64 form of its paper's formula, with and without padding.

Shapes: B batch, H heads, N tokens, P head dimension.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import reference_attention
import reference_backends as reference
import torch
from torch import Tensor

from skyformer.attention import (
    Attention,
    BigBirdAttention,
    InformerAttention,
    KernelizedAttention,
    LinformerAttention,
    NystromformerAttention,
    PerformerAttention,
    ReformerAttention,
    SoftmaxAttention,
)

B, H, N, P, MAX_LENGTH = 3, 2, 45, 8, 64
Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None]


class Case(NamedTuple):
    """A backend, and its reference on (backend, query, key, value, mask)."""

    make: Callable[..., Attention]
    settings: dict
    reference: Callable[..., Tensor]


def nystromformer(backend: Attention, *inputs) -> Tensor:
    weight = None if backend.conv is None else backend.conv.weight[:, 0, :, 0]
    return reference.nystromformer(*inputs, backend.num_landmarks, backend.pinv, weight)


def linformer(backend: Attention, *inputs) -> Tensor:
    return reference.linformer(*inputs, backend.key_projection, backend.value_projection)


def informer(backend: Attention, *inputs) -> Tensor:
    return reference.informer(*inputs, backend.eval_noise, backend.factor, backend.num_queries)


def performer(backend: Attention, *inputs) -> Tensor:
    return reference.performer(*inputs, backend.projection, backend.eps, backend.kernel)


def reformer(backend: Attention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    return reference.reformer(query, value, mask, backend.eval_rotations, backend.chunk_length)


def bigbird(backend: Attention, *inputs) -> Tensor:
    return reference.bigbird(*inputs, backend.noise, backend.block_size, backend.num_random_blocks)


def kernelized(_: Attention, *inputs) -> Tensor:
    return reference_attention.gaussian_attention(*inputs)


CASES = {
    "kernelized": Case(KernelizedAttention, {}, kernelized),
    "nystromformer, iterative": Case(NystromformerAttention, {"num_landmarks": 9, "conv_kernel": 5}, nystromformer),
    "nystromformer, exact": Case(NystromformerAttention, {"num_landmarks": 9, "pinv": "exact"}, nystromformer),
    "nystromformer, alone": Case(NystromformerAttention, {"num_landmarks": 9, "conv_kernel": 0}, nystromformer),
    "linformer, none": Case(LinformerAttention, {"projected_length": 7, "sharing": "none"}, linformer),
    "linformer, heads": Case(LinformerAttention, {"projected_length": 7, "sharing": "heads"}, linformer),
    "linformer, key_value": Case(LinformerAttention, {"projected_length": 7, "sharing": "key_value"}, linformer),
    "informer, fixed": Case(InformerAttention, {"num_queries": 6, "factor": 2.0}, informer),
    "informer, logarithm": Case(InformerAttention, {"num_queries": None, "factor": 2.0}, informer),
    "performer, softmax": Case(PerformerAttention, {"num_features": 20}, performer),
    "performer, relu": Case(PerformerAttention, {"num_features": 20, "kernel": "relu"}, performer),
    "reformer, one round": Case(ReformerAttention, {"num_buckets": 4, "num_rounds": 1, "chunk_length": 6}, reformer),
    "reformer, three rounds": Case(ReformerAttention, {"num_buckets": 4, "num_rounds": 3, "chunk_length": 6}, reformer),
    "bigbird": Case(BigBirdAttention, {"block_size": 4, "num_random_blocks": 2}, bigbird),
    "bigbird, no random blocks": Case(BigBirdAttention, {"block_size": 4, "num_random_blocks": 0}, bigbird),
}


def masks() -> dict[str, Tensor | None]:
    trailing = torch.arange(N) < torch.tensor([45, 30, 7])[:, None]
    holes = trailing.clone()
    holes[:, 3] = False
    holes[0, 20:25] = False
    empty = trailing.clone()
    empty[1] = False
    return {"no mask": None, "padding": trailing, "holes": holes, "one without tokens": empty}


def draw() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(B, H, N, P, dtype=torch.float64, generator=generator) for _ in range(3)]


def output_and_gradients(function: Callable[..., Tensor], weights: list[Tensor], mask: Tensor | None) -> list[Tensor]:
    """At real tokens, the gradients for inputs and learned weights, of a fixed random combination of the output."""
    inputs = [x.requires_grad_() for x in draw()]
    real = torch.ones(B, 1, N, 1) if mask is None else mask[:, None, :, None]
    out = function(*inputs, mask) * real
    cotangent = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((out * cotangent).sum(), [*inputs, *weights], allow_unused=True)
    return [out.detach(), *(gradient for gradient in gradients if gradient is not None)]


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
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


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
