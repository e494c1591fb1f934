"""The contract of every attention backend.

Shapes: B batch, H heads, N tokens, P head dimension.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from skyformer.ops.checks import check_at_least_one, check_mask


class Attention(nn.Module, ABC):
    """Mix values between tokens. The projections of query, key, value and output are outside.

    A backend follows four rules:

    - Padding never changes a real token's output.
    - An example's output never depends on the other examples of its batch.
    - In `eval()` the same input gives the same output, even if the method samples.
    - Under autocast and in half precision, the backend chooses which parts to compute in float32.

    Args:
        num_heads: H, positive.
        head_dim: P, positive.
        max_length: the largest N that the encoder takes, positive.

    Raises:
        ValueError: for a size below one, naming it.
    """

    # If True, the backend uses absolute positions, and the classifier restores dropped tokens.
    needs_absolute_positions = False
    # If True, keys equal queries. The encoder creates no key projection, and `forward` ignores `key`.
    shares_query_and_key = False
    dropout = 0.0  # rate on the attention weights, for a method that has weights to drop

    def __init__(self, num_heads: int, head_dim: int, max_length: int) -> None:
        super().__init__()
        check_at_least_one(num_heads=num_heads, head_dim=head_dim, max_length=max_length)
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.max_length = max_length
        self._draws: list[str] = []

    @property
    def dropout_p(self) -> float:
        """The current dropout rate on the attention weights: 0 in `eval()`."""
        return self.dropout if self.training else 0.0

    def register_draw(self, name: str, draw: Tensor) -> None:
        """Register a buffer of random numbers `(…)`, floating, that stays float32 in a half-precision model.

        Rounded to half precision, uniform numbers would tie or become 1, and the sample would not be uniform.
        """
        self.register_buffer(name, draw)
        self._draws.append(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        draws = {name: self._buffers[name] for name in self._draws}
        super()._apply(fn, recurse)
        for name, draw in draws.items():
            moved = self._buffers[name]
            if draw is not None and moved is not None and torch.finfo(moved.dtype).bits < 32:
                self._buffers[name] = draw.to(moved.device)
        return self

    def tie_parameters(self, first: "Attention") -> None:
        """Use the first layer's parameters that all layers share; none by default."""

    def check_inputs(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
        """Check the inputs of `forward` against the sizes of the backend.

        Raises:
            ValueError: for other shapes, naming the argument, or a mask that is not boolean.
        """
        if query.dim() != 4 or query.shape[1] != self.num_heads or query.shape[3] != self.head_dim:
            raise ValueError(
                f"query must have shape (B, num_heads={self.num_heads}, N, head_dim={self.head_dim}) (got "
                f"{tuple(query.shape)}). Fix: make {type(self).__name__} with the heads and the head size of its inputs"
            )
        for name, tensor in (("value", value),) if self.shares_query_and_key else (("key", key), ("value", value)):
            if tensor.shape != query.shape:
                raise ValueError(f"{name} must have the query's shape {tuple(query.shape)} (got {tuple(tensor.shape)})")
        if query.shape[2] > self.max_length:
            raise ValueError(
                f"sequence of {query.shape[2]} tokens is longer than max_length={self.max_length}. Fix: make "
                f"{type(self).__name__} with a larger max_length, or cut the sequence"
            )
        check_mask("mask", mask, (query.shape[0], query.shape[2]))

    @abstractmethod
    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """`(B, H, N, P)` three times and `(B, N)` bool (True = a real token) or None → `(B, H, N, P)`, of the
        value's dtype; under autocast possibly another one.

        Raises:
            ValueError: from `check_inputs`.
        """


def attendable(mask: Tensor | None) -> Tensor | None:
    """Convert a mask, `(B, S)` bool or None, for `scaled_dot_product_attention`.

    An example without any token attends everywhere: any finite output is valid, and NaN would spread.
    """
    return None if mask is None else (mask | ~mask.any(dim=1, keepdim=True))[:, None, None, :]
