"""Skyformer's attention in Hugging Face models, and this project's models on the hub: `pip install -e '.[hf]'`.

`register()` is in `skyformer.hf.attention`; `HubClassifier` is in `skyformer.hf.hub`, which imports Lightning.
"""

from skyformer.hf.attention import register

__all__ = ["register"]
