"""Inputs of attention: query, key and value of a model of this project, or of a Hugging Face encoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skyformer.attention import Attention
from skyformer.exceptions import RunError
from skyformer.model.classifier import SequenceClassifier
from skyformer.model.encoder import attention_inputs
from skyformer.study.setting import Setting

Heads = tuple[Tensor, Tensor, Tensor]  # query, key, value, (1, H, n, p)


@dataclass(frozen=True)
class Example:
    """Tokens `(1, n)` int64, and their places in a sequence that lacks some, or None for 0 … n − 1."""

    tokens: Tensor
    position: Tensor | None


def heads_of_setting(setting: Setting, lengths: Sequence[int], layer: int) -> dict[int, Heads]:
    """Query, key and value `(1, H, n, p)` of a layer of the setting's model, by length n.

    Raises:
        RunError: for a missing layer, or a length for which a trained model has no positions.
    """
    model = setting.make_model(None, max(lengths))
    found = {}
    for length in lengths:
        _, (query, key, value, _) = layer_inputs(model, example_of_length(setting, length, 0), layer)
        found[length] = (query, key, value)
    return found


def layer_inputs(model: SequenceClassifier, example: Example, number: int) -> tuple[Attention, tuple[Any, ...]]:
    """One layer's backend and its (query, key, value, mask).

    Raises:
        RunError: for a layer that does not exist.
    """
    layers = attention_inputs(model.encoder, example.tokens, None, example.position)
    if not -len(layers) <= number < len(layers):
        raise RunError(f"--layer {number}: the model has {len(layers)} layers, 0 … {len(layers) - 1}")
    return layers[number]


def example_of_length(setting: Setting, length: int, number: int) -> Example:
    """Return the `number`-th validation example of at least n tokens, cut to n; of two documents, the longer one.

    If no example is long enough, all examples are concatenated, and the `number`-th piece of n tokens is returned.

    Raises:
        RunError: where there are fewer.
    """
    split = setting.data.splits["val"]
    long_enough = (split.lengths >= length).nonzero()[0]
    if number < len(long_enough):
        tokens, position = _real(split[int(long_enough[number])])
        return Example(tokens[None, :length], None if position is None else position[None, :length])
    if len(long_enough):
        raise RunError(f"the validation set has {len(long_enough)} examples of {length:,} tokens, not {number + 1}")
    ends = split.lengths.cumsum()
    first, last = (int((ends <= place).sum()) for place in (number * length, (number + 1) * length - 1))
    pieces = [_real(split[index]) for index in range(first, min(last + 1, len(split)))]
    if last == len(split) or pieces[0][1] is not None:
        raise RunError(
            f"the validation set has no example of {length:,} tokens, and too few to be joined. Fix: ask for fewer"
        )
    start = number * length - int(ends[first] - split.lengths[first])
    return Example(torch.cat([tokens for tokens, _ in pieces])[None, start : start + length], None)


def _real(batch: Any) -> tuple[Tensor, Tensor | None]:
    """The real tokens of a batch of one example, `(n,)`, and their places."""
    tokens = batch.tokens.flatten(0, -2)
    if batch.mask is None:
        return tokens[0], None
    masks = batch.mask.flatten(0, -2)
    longest = int(masks.sum(dim=1).argmax())
    mask = masks[longest]
    return tokens[longest][mask], None if batch.position is None else batch.position[longest][mask]


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
        raise RunError("--encoder needs transformers. Fix: pip install -e '.[hf]'") from error
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
    """Return query, key and value from the outputs of the layer's projections at their last call."""
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
            "turn them by position. Fix: name another encoder."
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
