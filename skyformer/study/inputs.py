"""Query, key and value of a layer, at a wanted number of tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from skyformer.runs import RunError
from skyformer.study.setting import Setting, attention_inputs

Heads = tuple[Tensor, Tensor, Tensor]  # query, key, value, (1, H, n, p)


def heads_of_setting(setting: Setting, lengths: Sequence[int], layer: int, example: int) -> dict[int, Heads]:
    """Query, key and value `(1, H, n, p)` of a layer of the setting's model, by length n.

    Of each length the first examples of the dev set that are long enough, the `example`-th of them cut to n tokens;
    where none is, examples one after the other.

    Raises:
        RunError: for a layer that is none, or a length for which a trained model has no positions.
    """
    model = setting.make_model(None, max(lengths))
    found = {}
    for length in lengths:
        tokens = tokens_of_length(setting, length, example)
        layers = attention_inputs(model, tokens, None)
        if not -len(layers) <= layer < len(layers):
            raise RunError(f"--layer {layer}: the model has {len(layers)} layers, 0 … {len(layers) - 1}")
        query, key, value, _ = layers[layer]
        found[length] = (query, key, value)
    return found


def tokens_of_length(setting: Setting, length: int, example: int) -> Tensor:
    """`(1, n)` int64; of two documents, the longer one."""
    split = setting.data.splits["dev"]
    long_enough = (split.lengths >= length).nonzero()[0]
    if len(long_enough):
        return _tokens(split[int(long_enough[example % len(long_enough)])])[None, :length]
    pieces: list[Tensor] = []
    while sum(map(len, pieces)) < length:
        pieces.append(_tokens(split[(example + len(pieces)) % len(split)]))
    return torch.cat(pieces)[None, :length]


def _tokens(batch: Any) -> Tensor:
    """The real tokens of a batch of one example, `(n,)`."""
    documents = batch.tokens.flatten(0, -2)
    if batch.mask is None:
        return documents[0]
    masks = batch.mask.flatten(0, -2)
    longest = int(masks.sum(dim=1).argmax())
    return documents[longest][masks[longest]]
