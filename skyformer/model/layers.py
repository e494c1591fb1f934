"""Parts of a block: normalisation, feed-forward network, stochastic depth. Shapes: B batch, N tokens, D features."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skyformer.ops.checks import check_choice
from skyformer.ops.dropout import Dropout, check_probability

Norm = Literal["layer", "rms"]
FeedForward = Literal["gelu", "geglu"]
EPS = 1e-5  # of both norms; torch's own RMSNorm has that of the dtype


def make_norm(kind: Norm, embed_dim: int) -> nn.Module:
    """Make LayerNorm, or RMSNorm (Zhang and Sennrich, NeurIPS 2019): `x / √(mean(x²) + ε) · g`.

    Raises:
        ValueError: for another kind.
    """
    check_choice("norm", kind, Norm)
    return nn.LayerNorm(embed_dim, EPS) if kind == "layer" else nn.RMSNorm(embed_dim, EPS)


def make_feed_forward(kind: FeedForward, embed_dim: int, hidden_dim: int, dropout: float) -> nn.Sequential:
    """Make `(…, D)` → `(…, D)`: `GELU(x W) W'`, or `(GELU(x W) ⊙ x V) W'` for `geglu` (Shazeer 2020, Eq. 6).

    Raises:
        ValueError: for another kind.
    """
    check_choice("feed_forward", kind, FeedForward)
    gated = kind == "geglu"
    first = nn.Linear(embed_dim, 2 * hidden_dim if gated else hidden_dim)
    return nn.Sequential(first, GEGLU() if gated else nn.GELU(), Dropout(dropout), nn.Linear(hidden_dim, embed_dim))


class GEGLU(nn.Module):
    """`GELU(a) ⊙ b` for the halves a and b of the features."""

    def forward(self, x: Tensor) -> Tensor:
        gate, value = x.chunk(2, dim=-1)
        return F.gelu(gate) * value


class StochasticDepth(nn.Module):
    """Leave out a residual branch for some sequences of a batch in training (Huang et al., ECCV 2016).

    The branches that stay are divided by their probability, so that nothing changes in evaluation.

    Args:
        p: rate in [0, 1).

    Raises:
        ValueError: for another rate.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = check_probability("stochastic_depth", p)

    def forward(self, branch: Tensor) -> Tensor:
        """`(B, N, D)` of the branch → the same, with zeros for the sequences that leave it out."""
        if not self.training or self.p == 0:
            return branch
        kept = torch.rand((len(branch), 1, 1), device=branch.device) >= self.p
        return branch * kept / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"
