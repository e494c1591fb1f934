"""Query, key and value of a Hugging Face encoder's layer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skyformer.runs import RunError
from skyformer.study.inputs import Heads

# What the projections of a layer are called: BERT and its kin, DistilBERT, others.
_NAMES = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("q_proj", "k_proj", "v_proj"))


def heads_of_encoder(encoder: str, text: Path, lengths: Sequence[int], layer: int) -> dict[int, Heads]:
    """Query, key and value `(1, H, n, p)` of a layer, by length, for the first n tokens of a text.

    Raises:
        RunError: for an encoder or text that cannot be used, saying why.
    """
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise RunError("--encoder needs transformers: pip install -e '.[encoder]'") from error
    try:
        model = AutoModel.from_pretrained(encoder, attn_implementation="eager").eval()
        tokenizer = AutoTokenizer.from_pretrained(encoder)
    except (OSError, ValueError) as error:
        raise RunError(f"--encoder {encoder}: {' '.join(str(error).split())[:300]}") from error
    content = text.read_text(encoding="utf-8")
    ids = tokenizer(content, return_tensors="pt", truncation=False, verbose=False)["input_ids"]
    most = min(ids.shape[1], getattr(model.config, "max_position_embeddings", ids.shape[1]))
    if max(lengths) > most:
        raise RunError(f"--lengths {list(lengths)}: {encoder} has positions and {text} tokens for {most:,} at most")
    return {length: _heads(model, ids[:, :length], layer) for length in lengths}


@torch.no_grad()
def _heads(model: Any, ids: Tensor, layer: int) -> Heads:
    """By what the layer's projections put out, at their last call."""
    seen: dict[int, Tensor] = {}
    hooks = [
        part.register_forward_hook(lambda _, __, out, number=number: seen.update({number: out}))
        for number, part in enumerate(_projections(model, layer))
    ]
    try:
        attentions = model(ids, output_attentions=True).attentions
    finally:
        for hook in hooks:
            hook.remove()
    heads = model.config.num_attention_heads
    query, key, value = (seen[number].unflatten(-1, (heads, -1)).transpose(1, 2) for number in range(3))
    expected = (query @ key.mT * query.shape[-1] ** -0.5).softmax(dim=-1)
    if not torch.allclose(expected, attentions[layer], rtol=1e-3, atol=1e-5):
        raise RunError(
            f"--encoder: layer {layer} of {type(model).__name__} is not softmax(Q Kᵀ / √p) of its projections; it may "
            "turn them by position. Name another encoder."
        )
    return query, key, value


def _projections(model: nn.Module, layer: int) -> list[nn.Module]:
    for names in _NAMES:
        layers = [
            [getattr(module, name) for name in names]
            for module in model.modules()
            if all(isinstance(getattr(module, name, None), nn.Linear) for name in names)
        ]
        if layers and -len(layers) <= layer < len(layers):
            return layers[layer]
        if layers:
            raise RunError(f"--layer {layer}: the encoder has {len(layers)} layers, 0 … {len(layers) - 1}")
    raise RunError(f"--encoder: {type(model).__name__} has no layers with query, key and value apart")
