"""Query, key and value of a layer, at a wanted number of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skyformer.attention import Attention
from skyformer.encoder import attention_inputs
from skyformer.model import SequenceClassifier
from skyformer.runs import RunError
from skyformer.study.setting import Setting

Heads = tuple[Tensor, Tensor, Tensor]  # query, key, value, (1, H, n, p)


@dataclass(frozen=True)
class Example:
    """Tokens `(1, n)` int64, and their places in a sequence of which some were left out, or None for 0 … n − 1."""

    tokens: Tensor
    position: Tensor | None


def heads_of_setting(setting: Setting, lengths: Sequence[int], layer: int, example: int) -> dict[int, Heads]:
    """Query, key and value `(1, H, n, p)` of a layer of the setting's model, by length n.

    Raises:
        RunError: for a layer or example that is none, or a length for which a trained model has no positions.
    """
    model = setting.make_model(None, max(lengths))
    found = {}
    for length in lengths:
        _, (query, key, value, _) = layer_inputs(model, example_of_length(setting, length, example), layer)
        found[length] = (query, key, value)
    return found


def layer_inputs(model: SequenceClassifier, example: Example, number: int) -> tuple[Attention, tuple[Any, ...]]:
    """One layer's backend and its (query, key, value, mask).

    Raises:
        RunError: for a layer that is none.
    """
    layers = attention_inputs(model.encoder, example.tokens, None, example.position)
    if not -len(layers) <= number < len(layers):
        raise RunError(f"--layer {number}: the model has {len(layers)} layers, 0 … {len(layers) - 1}")
    return layers[number]


def example_of_length(setting: Setting, length: int, number: int) -> Example:
    """The `number`-th example of the dev set that has n tokens, cut to these; where none is long enough, the
    `number`-th n tokens of all examples one after the other. Of two documents, the longer one.

    Raises:
        RunError: where there are not so many.
    """
    split = setting.data.splits["dev"]
    long_enough = (split.lengths >= length).nonzero()[0]
    if number < len(long_enough):
        tokens, position = _real(split[int(long_enough[number])])
        return Example(tokens[None, :length], None if position is None else position[None, :length])
    if len(long_enough):
        raise RunError(f"the dev set has {len(long_enough)} examples of {length:,} tokens, not {number + 1}")
    ends = split.lengths.cumsum()
    first, last = (int((ends <= place).sum()) for place in (number * length, (number + 1) * length - 1))
    pieces = [_real(split[index]) for index in range(first, min(last + 1, len(split)))]
    if last == len(split) or pieces[0][1] is not None:
        raise RunError(f"the dev set has no example of {length:,} tokens, and too few to be joined; ask for fewer")
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
