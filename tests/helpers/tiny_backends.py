"""Every attention backend at a tiny size, and inputs for them: B batch, H heads, N tokens, P head dimension."""

import torch
from torch import Tensor

from skyformer.attention import (
    BigBirdAttention,
    InformerAttention,
    KernelizedAttention,
    LinformerAttention,
    NystromformerAttention,
    PerformerAttention,
    ReformerAttention,
    SkyformerAttention,
    SoftmaxAttention,
)

HEADS, HEAD_DIM, MAX_LENGTH = 2, 8, 4096
BACKENDS = {
    "bigbird": lambda: BigBirdAttention(HEADS, HEAD_DIM, MAX_LENGTH, block_size=16),
    "informer": lambda: InformerAttention(HEADS, HEAD_DIM, MAX_LENGTH, num_queries=32),
    "informer_logarithm": lambda: InformerAttention(HEADS, HEAD_DIM, MAX_LENGTH, num_queries=None),
    "linformer": lambda: LinformerAttention(HEADS, HEAD_DIM, MAX_LENGTH, projected_length=32),
    "nystromformer": lambda: NystromformerAttention(HEADS, HEAD_DIM, MAX_LENGTH, num_landmarks=32),
    "performer": lambda: PerformerAttention(HEADS, HEAD_DIM, MAX_LENGTH, num_features=32),
    "performer_relu": lambda: PerformerAttention(HEADS, HEAD_DIM, MAX_LENGTH, num_features=32, kernel="relu"),
    "reformer": lambda: ReformerAttention(HEADS, HEAD_DIM, MAX_LENGTH, num_buckets=8, chunk_length=16),
    "softmax": lambda: SoftmaxAttention(HEADS, HEAD_DIM, MAX_LENGTH),
    "kernelized": lambda: KernelizedAttention(HEADS, HEAD_DIM, MAX_LENGTH),
    "skyformer": lambda: SkyformerAttention(HEADS, HEAD_DIM, MAX_LENGTH, num_landmarks=32),
    "skyformer_newton": lambda: SkyformerAttention(
        HEADS, HEAD_DIM, MAX_LENGTH, num_landmarks=32, solver="newton_schulz", landmark_draw="half_and_half"
    ),
}


def inputs(batch: int, length: int, seed: int = 0, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(batch, HEADS, length, HEAD_DIM, generator=generator) for _ in range(3)]


def mask_of(*lengths: int, total: int) -> Tensor:
    return torch.arange(total) < torch.tensor(lengths)[:, None]


def write_outputs(path) -> None:
    torch.set_num_threads(1)
    outputs = {}
    for name, make in BACKENDS.items():
        torch.manual_seed(0)
        outputs[name] = make().eval()(*inputs(2, 70), mask_of(70, 31, total=70)).detach()
    torch.save(outputs, path)
