"""Attention backends, one per file, selected by class path."""

from skyformer.attention.base import Attention
from skyformer.attention.bigbird import BigBirdAttention
from skyformer.attention.informer import InformerAttention
from skyformer.attention.kernelized import KernelizedAttention
from skyformer.attention.linformer import LinformerAttention
from skyformer.attention.nystromformer import NystromformerAttention
from skyformer.attention.performer import PerformerAttention
from skyformer.attention.reformer import ReformerAttention
from skyformer.attention.skyformer import SkyformerAttention
from skyformer.attention.softmax import SoftmaxAttention

__all__ = [
    "BACKENDS",
    "Attention",
    "BigBirdAttention",
    "InformerAttention",
    "KernelizedAttention",
    "LinformerAttention",
    "NystromformerAttention",
    "PerformerAttention",
    "ReformerAttention",
    "SkyformerAttention",
    "SoftmaxAttention",
]

# By the name of their file in configs/attention.
BACKENDS: dict[str, type[Attention]] = {
    "bigbird": BigBirdAttention,
    "informer": InformerAttention,
    "kernelized": KernelizedAttention,
    "linformer": LinformerAttention,
    "nystromformer": NystromformerAttention,
    "performer": PerformerAttention,
    "reformer": ReformerAttention,
    "skyformer": SkyformerAttention,
    "softmax": SoftmaxAttention,
}
