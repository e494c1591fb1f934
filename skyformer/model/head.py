"""From the encoder's vectors to class scores."""

from typing import Literal

import torch
from torch import Tensor, nn

from skyformer.ops.checks import check_choice

Pooling = Literal["mean", "padded_mean", "max", "cls", "attention", "none"]
UNLABELLED = -100  # the label of a token without one, which torch's cross-entropy ignores


class ClassificationHead(nn.Module):
    """Pools each document over its tokens, then two linear layers → `(B, classes)`, or `(B, N, classes)` unpooled.

    Two documents with pooled vectors a and b become [a, b, a b, a − b], as in the published code.

    Args:
        embed_dim, hidden_dim, num_classes: sizes.
        pooling: `mean` and `max` are over real tokens. `cls` is the first real token. `attention` is the mean of real
            tokens x weighted by the softmax of w·x, where w is learned and starts at 0. `padded_mean` divides the sum
            over real tokens by the length with padding, as the published code does, so it depends on the padding.
            `none` scores each token, for data with a label for each token.
        num_documents: 1 or 2 an example.

    Raises:
        ValueError: for an unknown pooling, another number of documents, or two without pooling.
    """

    def __init__(
        self, embed_dim: int, hidden_dim: int, num_classes: int, pooling: Pooling = "mean", num_documents: int = 1
    ) -> None:
        super().__init__()
        check_choice("pooling", pooling, Pooling)
        if num_documents not in (1, 2):
            raise ValueError(f"num_documents={num_documents} must be 1 or 2")
        if pooling == "none" and num_documents == 2:
            raise ValueError("pooling=none scores tokens of one document, not pairs (got num_documents=2)")
        self.pooling = pooling
        self.num_documents = num_documents
        features = embed_dim if num_documents == 1 else 4 * embed_dim
        self.layers = nn.Sequential(nn.Linear(features, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, num_classes))
        self.query = nn.Parameter(torch.zeros(embed_dim)) if pooling == "attention" else None

    def forward(self, x: Tensor, mask: Tensor | None, length: int) -> Tensor:
        """`(B · num_documents, N, D)`, `(B · num_documents, N)` bool or None, and the length with padding."""
        if self.pooling == "none":
            return self.layers(x)
        pooled = pool(x, mask, self.pooling, length) if self.query is None else attention_pool(x, mask, self.query)
        if self.num_documents == 2:
            first, second = pooled.unflatten(0, (-1, 2)).unbind(dim=1)
            pooled = torch.cat([first, second, first * second, first - second], dim=-1)
        return self.layers(pooled)


def pool(x: Tensor, mask: Tensor | None, pooling: Pooling, length: int) -> Tensor:
    """`(B, N, D)`, `(B, N)` bool or None, and the length with padding → `(B, D)`; see `ClassificationHead`."""
    if pooling == "cls":
        # Of an example without tokens, the first that is no token: any finite output does.
        return x[:, 0] if mask is None else x[torch.arange(x.shape[0], device=x.device), mask.int().argmax(dim=1)]
    if mask is None:
        return x.amax(dim=1) if pooling == "max" else x.mean(dim=1)
    real = mask[:, :, None]
    if pooling == "max":
        largest = x.masked_fill(~real, torch.finfo(x.dtype).min).amax(dim=1)
        return torch.where(real.any(dim=1), largest, 0)
    count = length if pooling == "padded_mean" else real.sum(dim=1).clamp(min=1)
    return (x * real).sum(dim=1) / count


def attention_pool(x: Tensor, mask: Tensor | None, query: Tensor) -> Tensor:
    """`Σ_n softmax_n(w·x_n) x_n` over real tokens: `(B, N, D)`, `(B, N)` bool or None, w `(D,)` → `(B, D)`.

    Of an example without tokens, a mean over padding: any finite output does.
    """
    score = x @ query.to(x.dtype)
    if mask is not None:
        score = score.masked_fill(~mask, torch.finfo(score.dtype).min)
    return (score.softmax(dim=1)[:, :, None] * x).sum(dim=1)
