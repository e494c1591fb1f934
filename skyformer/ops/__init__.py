"""The mathematics as functions of tensors. Nothing here imports Lightning.

`gaussian.py` and `nystrom.py` are the paper's two attentions. `nystrom_softmax.py` approximates softmax attention. The
other modules are building blocks for these and the backends.
"""

from skyformer.ops.gaussian import gaussian_attention
from skyformer.ops.kernel import gaussian_kernel
from skyformer.ops.linalg import newton_schulz_inverse
from skyformer.ops.nystrom import nystrom_gaussian_attention, regularized_gram
from skyformer.ops.nystrom_softmax import matched_keys, nystrom_softmax_attention
from skyformer.ops.softmax import softmax_attention

__all__ = [
    "gaussian_attention",
    "gaussian_kernel",
    "matched_keys",
    "newton_schulz_inverse",
    "nystrom_gaussian_attention",
    "nystrom_softmax_attention",
    "regularized_gram",
    "softmax_attention",
]
