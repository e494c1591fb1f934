"""The mathematics as functions of tensors. Nothing here imports Lightning.

`gaussian.py` and `nystrom.py` are the paper's two attentions; the other modules are what they and the backends use.
"""

from skyformer.ops.gaussian import gaussian_attention
from skyformer.ops.kernel import gaussian_kernel
from skyformer.ops.linalg import newton_schulz_inverse
from skyformer.ops.nystrom import nystrom_gaussian_attention, regularized_gram
from skyformer.ops.softmax import softmax_attention

__all__ = [
    "gaussian_attention",
    "gaussian_kernel",
    "newton_schulz_inverse",
    "nystrom_gaussian_attention",
    "regularized_gram",
    "softmax_attention",
]
