"""Each backend beside its literal float64 reference, and inputs with every kind of padding.

Shapes: B batch, H heads, N tokens, P head dimension.
"""

from collections.abc import Callable
from typing import NamedTuple

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


def softmax(_: Attention, *inputs) -> Tensor:
    return reference.softmax(*inputs)


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
    "softmax": Case(SoftmaxAttention, {}, softmax),
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


def output_and_gradients(
    function: Callable[..., Tensor], weights: list[Tensor], mask: Tensor | None, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """At real tokens, the gradients for inputs and learned weights, of a fixed random combination of the output."""
    inputs = [x.to(dtype).requires_grad_() for x in draw()]
    real = torch.ones(B, 1, N, 1) if mask is None else mask[:, None, :, None]
    out = function(*inputs, mask) * real
    cotangent = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((out * cotangent).sum(), [*inputs, *weights], allow_unused=True)
    return [out.detach(), *(gradient for gradient in gradients if gradient is not None)]


def errors(name: str, dtype: torch.dtype) -> tuple[float, float]:
    """Relative error of a backend in `dtype`: of its output, and the largest of its gradients; with padding."""
    case, mask = CASES[name], masks()["padding"]
    torch.manual_seed(0)
    backend = case.make(H, P, MAX_LENGTH, **case.settings).double().eval()
    expected = output_and_gradients(lambda *inputs: case.reference(backend, *inputs), list(backend.parameters()), mask)
    backend = backend.to(dtype)
    actual = output_and_gradients(backend, list(backend.parameters()), mask, dtype)
    found = [((a - b).norm() / b.norm()).item() for a, b in zip(actual, expected, strict=True)]
    return found[0], max(found[1:])
