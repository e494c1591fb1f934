"""From the encoder's vectors to class scores."""

from typing import Literal

import torch
from torch import Tensor, nn

Pooling = Literal["mean", "padded_mean", "max", "cls"]


class ClassificationHead(nn.Module):
    """Pools `(B, N, D)` over tokens, then two linear layers → `(B, classes)`.

    Args:
        embed_dim, hidden_dim, num_classes: sizes.
        pooling: `mean` and `max` over real tokens; `cls`, the first token; `padded_mean` divides the sum over
            real tokens by N, padding included, as the published code does: the result depends on the padding.
    """

    def __init__(self, embed_dim: int, hidden_dim: int, num_classes: int, pooling: Pooling = "mean") -> None:
        super().__init__()
        self.pooling = pooling
        self.layers = nn.Sequential(nn.Linear(embed_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, num_classes))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.layers(pool(x, mask, self.pooling))


def pool(x: Tensor, mask: Tensor | None, pooling: Pooling) -> Tensor:
    """`(B, N, D)` and `(B, N)` bool or None → `(B, D)`; see `ClassificationHead` for the ways to pool."""
    if pooling == "cls":
        return x[:, 0]
    if mask is None:
        return x.amax(dim=1) if pooling == "max" else x.mean(dim=1)
    real = mask[:, :, None]
    if pooling == "max":
        largest = x.masked_fill(~real, torch.finfo(x.dtype).min).amax(dim=1)
        return torch.where(real.any(dim=1), largest, 0)
    count = x.shape[1] if pooling == "padded_mean" else real.sum(dim=1).clamp(min=1)
    return (x * real).sum(dim=1) / count
