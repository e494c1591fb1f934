"""Linformer: softmax attention on keys and values projected to a fixed length."""

from typing import Literal

import torch
from torch import Tensor, nn

from skyformer.attention.base import Attention
from skyformer.ops.checks import check_at_least_one, check_choice
from skyformer.ops.dropout import check_probability
from skyformer.ops.softmax import softmax_attention

Sharing = Literal["none", "heads", "key_value", "layers"]


class LinformerAttention(Attention):
    """`softmax(Q (Eᵀ K)ᵀ / √p) Fᵀ V` with learned E and F `(N, k)` (Wang et al. 2020, Eq. 7), O(N k P) time.

    A token's position selects its row of E and F, and padded tokens contribute nothing. In Skyformer's published code
    the projection is neither trained nor saved.

    Args:
        num_heads, head_dim, max_length: see `Attention`.
        projected_length: k.
        sharing: how projections are shared (§4). `none`: each head has its own E and F. `heads`: a layer has one E
            and one F. `key_value`: also E = F. `layers`: one matrix for the whole encoder.
        dropout: rate on the attention weights.

    Raises:
        ValueError: for an invalid argument, naming it and valid values.
    """

    needs_absolute_positions = True

    def __init__(
        self, num_heads: int, head_dim: int, max_length: int,
        projected_length: int = 128, sharing: Sharing = "heads",
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(num_heads, head_dim, max_length)
        check_at_least_one(projected_length=projected_length)
        check_choice("sharing", sharing, Sharing)
        self.dropout = check_probability("dropout", dropout)
        self.sharing = sharing
        shape = (num_heads if sharing == "none" else 1, max_length, projected_length)
        # Entries of variance 1 / k keep lengths on average (Johnson and Lindenstrauss).
        self.key_projection = nn.Parameter(torch.randn(shape) * projected_length**-0.5)
        self.value_projection = self.key_projection
        if sharing in ("none", "heads"):
            self.value_projection = nn.Parameter(torch.randn(shape) * projected_length**-0.5)

    def tie_parameters(self, first: Attention) -> None:
        if self.sharing == "layers" and isinstance(first, LinformerAttention):
            self.key_projection = self.value_projection = first.key_projection

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        self.check_inputs(query, key, value, mask)
        if mask is not None:
            key, value = (x.masked_fill(~mask[:, None, :, None], 0) for x in (key, value))
        short_key = self.key_projection[:, : key.shape[2]].mT @ key
        short_value = self.value_projection[:, : key.shape[2]].mT @ value
        return softmax_attention(query, short_key, short_value, dropout_p=self.dropout_p)
