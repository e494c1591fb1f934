"""Efficient attention for long sequences: Gaussian-kernel attention, its Nyström approximation, and their peers.

The public names are imported on first use, so that `import skyformer` is quick and the functions need no Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skyformer.loading import load_model
    from skyformer.model.classifier import SequenceClassifier
    from skyformer.model.encoder import Encoder
    from skyformer.ops.gaussian import gaussian_attention
    from skyformer.ops.nystrom import nystrom_gaussian_attention

__version__ = "0.1.0"
__all__ = ["Encoder", "SequenceClassifier", "gaussian_attention", "load_model", "nystrom_gaussian_attention"]

_MODULES = {
    "Encoder": "skyformer.model.encoder",
    "SequenceClassifier": "skyformer.model.classifier",
    "gaussian_attention": "skyformer.ops.gaussian",
    "load_model": "skyformer.loading",
    "nystrom_gaussian_attention": "skyformer.ops.nystrom",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
