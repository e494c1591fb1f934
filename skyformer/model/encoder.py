"""The encoder that all methods share: embedding, positions, pre-norm blocks around an attention backend.

Shapes: B batch, N tokens, D embedding size, H heads, P = D / H.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skyformer.attention import BACKENDS, Attention
from skyformer.model.layers import FeedForward, Norm, StochasticDepth, make_feed_forward, make_norm
from skyformer.model.positions import (
    LOCAL_STANDARD_DEVIATION,
    STANDARD_DEVIATION,
    PositionInit,
    Positions,
    check_position_init,
    local_biases,
    make_positions,
    make_rotary,
    rotate,
    start_learned,
)
from skyformer.ops.checks import check_at_least_one
from skyformer.ops.dropout import Dropout, check_probability
from skyformer.ops.kernel import at_least_float32
from skyformer.ops.recompute import recomputed_in_backward

AttentionFactory = Callable[[int, int, int], Attention]
# Without this, torch.compile draws landmarks from its own generator, and results differ from the eager run.
COMPILE_OPTIONS = {"fallback_random": True}


class Encoder(nn.Module):
    """Token ids `(B, N)` → vectors `(B, N, D)`.

    Args:
        vocab_size: number of token ids.
        max_length: largest N.
        attention: makes one backend a layer, called with (num_heads, head_dim, max_length). A name in
            `skyformer.attention.BACKENDS`, such as `skyformer`, is that class with its default arguments.
        num_layers, embed_dim, hidden_dim, num_heads: 2, 64, 128, 2 in the paper.
        dropout: rate after the embedding, after attention, and twice in each feed-forward network.
        norm: before attention and feed-forward network and at the end: `layer` or `rms`.
        feed_forward: `gelu`, or `geglu`, which has a gate and 1.5 times the weights.
        stochastic_depth: probability in training that a sequence skips a branch of the last block. Block l of L uses
            l / L of this value.
        float32_attention: keep attention in float32 in mixed and half precision, as the published code does.
        positions: `learned` or `sinusoidal` vectors, which are added to the embedding; `rotary` or, on images,
            `rotary_2d` rotations of queries and keys; or `none`.
        position_init: initial values of `learned` positions: `normal`, of standard deviation 0.02, or `sinusoidal_2d`,
            which gives nearby pixels similar vectors (`sinusoidal_positions_2d`). With `rotary` and `rotary_2d`,
            `local` initialises the projections of queries and keys: each head attends to a neighbour of its token or to
            a small neighbourhood (`local_biases`).
        query_key_gain: None initialises query and key projections independently. A number initialises the key
            projection as a copy of the query projection, both multiplied by it. Each token then attends to similar
            tokens, on images to its neighbourhood. A larger gain narrows the neighbourhood. The idea is that of mimetic
            initialization (Trockman and Kolter, ICML 2023).
        gradient_checkpointing: recompute each block in the backward pass instead of storing its activations. The
            gradients are the same. It saves memory and takes more time.
        image_side: side of the images whose pixels are the tokens; 0 for other sequences.

    Raises:
        ValueError: for incompatible sizes, naming them.
    """

    def __init__(
        self,
        vocab_size: int,
        max_length: int,
        attention: AttentionFactory | str,
        num_layers: int = 2,
        embed_dim: int = 64,
        hidden_dim: int = 128,
        num_heads: int = 2,
        dropout: float = 0.1,
        norm: Norm = "layer",
        feed_forward: FeedForward = "gelu",
        stochastic_depth: float = 0.0,
        float32_attention: bool = False,
        positions: Positions = "learned",
        position_init: PositionInit = "normal",
        query_key_gain: float | None = None,
        gradient_checkpointing: bool = False,
        image_side: int = 0,
    ) -> None:
        super().__init__()
        check_at_least_one(
            vocab_size=vocab_size,
            num_layers=num_layers,
            embed_dim=embed_dim,
            hidden_dim=hidden_dim,
            num_heads=num_heads,
        )
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim={embed_dim} must be a multiple of num_heads={num_heads}")
        check_probability("dropout", dropout)
        check_probability("stochastic_depth", stochastic_depth)
        check_position_init(positions, position_init)
        if query_key_gain is not None and not 0 < query_key_gain < math.inf:
            raise ValueError(f"query_key_gain={query_key_gain} must be a number above 0, or null")
        if query_key_gain is not None and position_init == "local":
            raise ValueError(
                f"position_init=local and query_key_gain initialise the same weights (got "
                f"query_key_gain={query_key_gain}). Fix: --model.query_key_gain null"
            )
        self.max_length = max_length
        self.gradient_checkpointing = gradient_checkpointing
        self.tokens = nn.Embedding(vocab_size, embed_dim)
        self.positions = make_positions(positions, max_length, embed_dim)
        self.rotary = make_rotary(positions, max_length, embed_dim // num_heads, image_side)
        deviation = LOCAL_STANDARD_DEVIATION if position_init == "local" else STANDARD_DEVIATION
        nn.init.normal_(self.tokens.weight, std=deviation)
        if isinstance(self.positions, nn.Embedding):
            start_learned(self.positions.weight, position_init, image_side)
        self.dropout = Dropout(dropout)
        if isinstance(attention, str):
            if attention not in BACKENDS:
                raise ValueError(
                    f"no backend has this name (got attention={attention!r}). Fix: name one of {', '.join(BACKENDS)}, "
                    "or give a class"
                )
            attention = BACKENDS[attention]
        backends = [attention(num_heads, embed_dim // num_heads, max_length) for _ in range(num_layers)]
        for backend in backends[1:]:
            backend.tie_parameters(backends[0])
        self.needs_absolute_positions = any(backend.needs_absolute_positions for backend in backends)
        self.blocks = nn.ModuleList(
            Block(
                backend, embed_dim, hidden_dim, dropout, float32_attention, norm, feed_forward,
                stochastic_depth * (number / num_layers),
            )
            for number, backend in enumerate(backends, start=1)
        )  # fmt: skip
        self.norm = make_norm(norm, embed_dim)
        for module in self.modules():
            if isinstance(module, MultiHeadAttention):
                if position_init == "local":
                    module.start_local(positions)
                elif query_key_gain is not None:
                    module.start_equal(query_key_gain)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, position: Tensor | None = None) -> Tensor:
        """`(B, N)` int64 ids, `(B, N)` bool (True = a real token) or None, and `(B, N)` int64 positions or None for
        0 … N − 1 → `(B, N, D)`.
        """
        length = tokens.shape[1]
        if length > self.max_length:
            raise ValueError(f"sequence of {length} tokens is longer than max_length={self.max_length}")
        x = self.tokens(tokens)
        if self.positions is not None:
            weight = self.positions.weight
            x = x + (weight[:length] if position is None else F.embedding(position, weight))
        x = self.dropout(x)
        rotation = None if self.rotary is None else self.rotary(length, position)
        recomputes = self.gradient_checkpointing and torch.is_grad_enabled()
        for block in self.blocks:
            x = recomputed_in_backward(block, x, mask, rotation) if recomputes else block(x, mask, rotation)
        return self.norm(x)


class Block(nn.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`."""

    def __init__(
        self,
        attention: Attention,
        embed_dim: int,
        hidden_dim: int,
        dropout: float,
        float32_attention: bool,
        norm: Norm = "layer",
        feed_forward: FeedForward = "gelu",
        stochastic_depth: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention_norm = make_norm(norm, embed_dim)
        self.attention = MultiHeadAttention(attention, embed_dim, float32_attention)
        self.mlp_norm = make_norm(norm, embed_dim)
        self.mlp = make_feed_forward(feed_forward, embed_dim, hidden_dim, dropout)
        self.dropout = Dropout(dropout)
        self.stochastic_depth = StochasticDepth(stochastic_depth)

    def forward(self, x: Tensor, mask: Tensor | None, rotation: Tensor | None = None) -> Tensor:
        x = x + self.stochastic_depth(self.dropout(self.attention(self.attention_norm(x), mask, rotation)))
        return x + self.stochastic_depth(self.dropout(self.mlp(self.mlp_norm(x))))


class MultiHeadAttention(nn.Module):
    """The projections around a backend, which sees heads only."""

    def __init__(self, attention: Attention, embed_dim: int, float32_attention: bool) -> None:
        super().__init__()
        self.backend = attention
        self.float32_attention = float32_attention
        self.query_key_value = nn.Linear(embed_dim, (2 if attention.shares_query_and_key else 3) * embed_dim)
        self.output = nn.Linear(embed_dim, embed_dim)

    @torch.no_grad()
    def start_equal(self, gain: float) -> None:
        """Make the key projection a copy of the query projection, both times `gain`; without a key projection, keys
        equal queries already.
        """
        for parameter in (self.query_key_value.weight, self.query_key_value.bias):
            *query_key, _ = parameter.chunk(2 if self.backend.shares_query_and_key else 3)
            start = query_key[0] * gain
            for part in query_key:
                part.copy_(start)

    @torch.no_grad()
    def start_local(self, positions: Positions) -> None:
        """Set the projections of queries and keys to zero, and their biases to `local_biases`.

        Raises:
            ValueError: for a backend whose queries are its keys.
        """
        if self.backend.shares_query_and_key:
            raise ValueError(
                f"position_init=local needs separate queries and keys (got {type(self.backend).__name__}). Fix: "
                "--model.position_init normal"
            )
        biases = local_biases(positions, self.backend.num_heads, self.backend.head_dim)
        weight, bias = self.query_key_value.weight, self.query_key_value.bias
        weight[: biases.numel()].zero_()
        bias[: biases.numel()].copy_(biases.flatten())

    def forward(self, x: Tensor, mask: Tensor | None, rotation: Tensor | None = None) -> Tensor:
        *query_key, value = self._heads(self.query_key_value(x))
        if rotation is not None:
            query_key = [rotate(rows, rotation) for rows in query_key]
        query, key = query_key[0], query_key[-1]
        if self.float32_attention:
            with torch.autocast(x.device.type, enabled=False):
                exact = at_least_float32(query)
                mixed = self.backend(query.to(exact), key.to(exact), value.to(exact), mask)
        else:
            mixed = self.backend(query, key, value, mask)
        # A backend may return a higher precision than that of the weights.
        return self.output(torch.cat(mixed.unbind(1), dim=-1).to(value.dtype))

    def _heads(self, projected: Tensor) -> Iterator[Tensor]:
        """`(B, N, C H P)` → C times `(B, H, N, P)`, contiguous, since each product would copy them again.

        Pieces are split off and joined, here and for the output, since that is faster than to permute the axes.
        """
        heads = self.backend.num_heads
        pieces = projected.split(self.backend.head_dim, dim=-1)
        return (torch.stack(pieces[start : start + heads], dim=1) for start in range(0, len(pieces), heads))


@torch.no_grad()
def attention_inputs(
    encoder: Encoder, tokens: Tensor, mask: Tensor | None, position: Tensor | None
) -> list[tuple[Attention, tuple[Any, ...]]]:
    """Return each layer's backend and its inputs (query, key, value, mask) in `encoder(tokens, mask, position)`.

    It runs without compilation, which would bypass the hooks.
    """
    seen: list[tuple[Attention, tuple[Any, ...]]] = []
    layers = [module for module in encoder.modules() if isinstance(module, Attention)]
    hooks = [layer.register_forward_pre_hook(lambda layer, inputs: seen.append((layer, inputs))) for layer in layers]
    try:
        with torch.compiler.set_stance("force_eager"):
            encoder(tokens, mask, position)
    finally:
        for hook in hooks:
            hook.remove()
    return seen
