"""Efficient attention for long sequences: Gaussian-kernel attention, its Nyström approximation, and their peers.

The public names are imported on first use, so that `import skyformer` is quick and the functions need no Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skyformer.encoder import Encoder
    from skyformer.functional import gaussian_attention, nystrom_gaussian_attention
    from skyformer.loading import load_model
    from skyformer.model import SequenceClassifier

__version__ = "0.1.0"
__all__ = ["Encoder", "SequenceClassifier", "gaussian_attention", "load_model", "nystrom_gaussian_attention"]

_MODULES = {
    "Encoder": "skyformer.encoder",
    "SequenceClassifier": "skyformer.model",
    "gaussian_attention": "skyformer.functional",
    "load_model": "skyformer.loading",
    "nystrom_gaussian_attention": "skyformer.functional",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
