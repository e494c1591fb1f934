"""Attention backends: one file each, one contract (`skyformer.attention.base.Attention`)."""

from skyformer.attention.base import Attention
from skyformer.attention.kernelized import KernelizedAttention
from skyformer.attention.skyformer import SkyformerAttention
from skyformer.attention.softmax import SoftmaxAttention

__all__ = ["Attention", "KernelizedAttention", "SkyformerAttention", "SoftmaxAttention"]
