"""Performer: attention through random features whose products are an unbiased estimate of the softmax kernel."""

from typing import Any, Literal

import torch
from torch import Tensor

from skyformer.attention.base import Attention
from skyformer.ops.checks import check_above_zero, check_at_least_one, check_choice
from skyformer.ops.random_features import key_features, query_features
from skyformer.ops.recompute import is_recomputing

Kernel = Literal["softmax", "relu"]


class PerformerAttention(Attention):
    """FAVOR+ (Choromanski et al., ICLR 2021): `φ(Q) (φ(K)ᵀ V)`, each row divided by `φ(Q) (φ(K)ᵀ 1)`; O(N m P).

    With x = q / p^¼ or k / p^¼ and orthogonal ω_1 … ω_m, `φ(x) = exp(ω x − ‖x‖²/2 − c) + ε` (Lemma 1, Eq. 7), or
    `relu(ω x) + ε`. The stabiliser c cancels except for ε. For a query it is its own largest ω x, and for keys the
    largest of an example's real keys. The published code takes the largest key of the batch, as a constant for the
    gradient. All computation is in float32.

    Args:
        num_heads, head_dim, max_length: see `Attention`.
        num_features: m.
        kernel: `softmax`, or `relu`, which estimates another kernel and trains more stably (§3.4).
        eps: ε, added to every feature; keeps the row sums above zero.
        redraw_every: training steps between new draws of ω; None to keep the first.
        seed: seed of the first draw; the k-th new one has seed + k.

    Raises:
        ValueError: for an invalid argument, naming it and valid values.
    """

    projection: Tensor
    calls: Tensor

    def __init__(
        self, num_heads: int, head_dim: int, max_length: int,
        num_features: int = 128, kernel: Kernel = "softmax", eps: float = 1e-4,
        redraw_every: int | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(num_heads, head_dim, max_length)
        check_at_least_one(num_features=num_features)
        check_choice("kernel", kernel, Kernel)
        check_above_zero(eps=eps)
        if redraw_every is not None and redraw_every < 1:
            raise ValueError(f"redraw_every={redraw_every} must be at least 1, or null for never")
        self.num_features = num_features
        self.kernel = kernel
        self.eps = eps
        self.redraw_every = redraw_every
        self.seed = seed
        self.register_draw("projection", self._draw(torch.Generator().manual_seed(seed)))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        self.check_inputs(query, key, value, mask)
        if self.training and self.redraw_every is not None and not is_recomputing():
            self._count_call(self.redraw_every)
        dtype = value.dtype
        with torch.autocast(query.device.type, enabled=False):
            exact = torch.promote_types(query.dtype, torch.float32)
            query, key, value = query.to(exact), key.to(exact), value.to(exact)
            scale = self.head_dim**-0.25
            if mask is not None:
                key, value = (x.masked_fill(~mask[:, None, :, None], 0) for x in (key, value))
            out = self._attend(*self._features(query * scale, key * scale, mask), value, mask)
        return out.to(dtype)

    def _features(self, query: Tensor, key: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """φ − ε of queries and of keys, `(B, H, N, m)`; zero for padding."""
        omega = self.projection.to(query.dtype)
        if self.kernel == "relu":
            return (query @ omega.mT).relu(), (key @ omega.mT).relu()
        return query_features(query, omega), key_features(key, omega, mask)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """`(φ(Q) φ(K)ᵀ V) / (φ(Q) φ(K)ᵀ 1)`, ε added to what it is multiplied with, not to each feature."""
        count = value.shape[2] if mask is None else mask.sum(dim=-1, dtype=value.dtype)[:, None, None, None]
        summary = key.mT @ value + self.eps * value.sum(dim=2, keepdim=True)
        total = key.sum(dim=2)[..., None] + self.eps * count
        normaliser = query @ total + self.eps * total.sum(dim=2, keepdim=True)
        # An example without a single token gives nothing, over one.
        normaliser = torch.where(normaliser > 0, normaliser, 1)
        return (query @ summary + self.eps * summary.sum(dim=2, keepdim=True)) / normaliser

    def _count_call(self, redraw_every: int) -> None:
        draws, since = divmod(int(self.calls), redraw_every)
        if draws and not since:
            # From its own generator, so that a recomputed layer, which does not draw, has the same dropout.
            self.projection.copy_(self._draw(torch.Generator().manual_seed(self.seed + draws)))
        self.calls += 1

    def _draw(self, generator: torch.Generator) -> Tensor:
        """ω, `(m, P)`: orthogonal within each block of P rows, with the lengths of independent Gaussian rows."""
        shape = (-(-self.num_features // self.head_dim), self.head_dim, self.head_dim)
        # QR and orthogonality need float32.
        settings: Any = {"generator": generator, "dtype": torch.float32}
        blocks = torch.linalg.qr(torch.randn(shape, **settings)).Q
        directions = blocks.mT.flatten(0, 1)[: self.num_features]
        lengths = torch.randn((self.num_features, self.head_dim), **settings).norm(dim=1)
        return lengths[:, None] * directions
