"""Reformer: softmax attention within buckets of similar tokens."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from skyformer.attention.base import Attention
from skyformer.ops.checks import check_at_least_one

SELF_PENALTY = 1e5  # taken off a token's logit for itself: it attends to itself only where it has no other


class ReformerAttention(Attention):
    """LSH attention with shared queries and keys (Kitaev, Kaiser, Levskaya, ICLR 2020, §2), O(N R c P) time.

    In each of R rounds a token's bucket is the largest entry of [x R_r; −x R_r], R_r random. Tokens are sorted by
    bucket and cut into chunks of c. A token attends, within its bucket, to its chunk and the previous one. Keys are the
    normalised queries. The rounds are weighted by their normalisers, and a pair that meets in several rounds counts
    once (Eq. 7). Padding is sorted behind all buckets. In the published codes the first chunk also looks back to the
    last.

    The rotations are new in every training step and shared by a batch's examples and heads. In `eval()` they are drawn
    once from `seed` and saved.

    Args:
        num_heads, head_dim, max_length: see `Attention`.
        num_buckets: even.
        num_rounds: R.
        chunk_length: c.
        seed: seed of the rotations in `eval()`.

    Raises:
        ValueError: for an invalid argument, naming it and valid values.
    """

    shares_query_and_key = True
    eval_rotations: Tensor

    def __init__(
        self, num_heads: int, head_dim: int, max_length: int,
        num_buckets: int = 32, num_rounds: int = 2, chunk_length: int = 64, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(num_heads, head_dim, max_length)
        if num_buckets < 2 or num_buckets % 2:
            raise ValueError(f"num_buckets={num_buckets} must be even and at least 2")
        check_at_least_one(num_rounds=num_rounds, chunk_length=chunk_length)
        self.num_buckets = num_buckets
        self.num_rounds = num_rounds
        self.chunk_length = chunk_length
        shape = (num_rounds, head_dim, num_buckets // 2)
        generator = torch.Generator().manual_seed(seed)
        self.register_draw("eval_rotations", torch.randn(shape, generator=generator, dtype=torch.float32))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        self.check_inputs(query, key, value, mask)
        batch, _, length, _ = query.shape
        tokens = query.new_ones((batch, length), dtype=torch.bool) if mask is None else mask
        pad = -length % self.chunk_length
        query, value = (F.pad(x, (0, 0, 0, pad)) for x in (query, value))
        # Padding has length 0. The usual eps of 1e-12 is 0 in float16, and 0 / 0 is NaN.
        key = F.normalize(query, dim=-1, eps=max(1e-12, torch.finfo(query.dtype).tiny))
        orders, ranks, codes = self._sort(query, F.pad(tokens, (0, pad)))
        outs, normalisers = [], []
        for own, (order, rank) in enumerate(zip(orders, ranks, strict=True)):
            # Of all the rounds, this one first.
            codes_of_round = [codes[own], *codes[:own], *codes[own + 1 :]]
            out, normaliser = self._attend(query, key, value, order, rank, codes_of_round)
            outs.append(_Permuted.apply(out, rank, order))
            normalisers.append(_Permuted.apply(normaliser, rank, order).squeeze(3))
        weights = torch.stack(normalisers).softmax(dim=0)[..., None]
        return (torch.stack(outs) * weights).sum(dim=0)[:, :, :length].to(value.dtype)

    @torch.no_grad()
    def _sort(self, query: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return positions sorted by bucket, each token's rank in this order, and a code, each `(R, B, H, N)`.

        Two tokens meet if the query's code equals the key's or is one more. Padding has its own bucket behind all
        others.
        """
        rotations = self.eval_rotations
        if self.training:
            rotations = torch.randn(rotations.shape, dtype=torch.float32, device=rotations.device).to(rotations.dtype)
        with torch.autocast(query.device.type, enabled=False):
            projected = query[None].to(rotations.dtype) @ rotations[:, None, None]
        bucket = torch.cat([projected, -projected], dim=-1).argmax(dim=-1)
        bucket = bucket.masked_fill(~tokens[None, :, None], self.num_buckets)
        order = bucket.argsort(dim=-1, stable=True)
        places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
        rank = torch.empty_like(order).scatter_(-1, order, places)
        chunks = order.shape[-1] // self.chunk_length
        # A step between buckets that no two chunks bridge.
        code = bucket * (chunks + 2) + rank // self.chunk_length
        return order, rank, code[..., None].int()

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, order: Tensor, rank: Tensor, codes: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Output `(B, H, N, P)` and log-normaliser `(B, H, N, 1)` of one round, in sorted order; its code is first."""
        keys, values = (_with_previous(self._chunks(x, order, rank)) for x in (key, value))
        logits = (self._chunks(query, order, rank) @ keys.mT) * self.head_dim**-0.5
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        own, *others = (self._meets(code, order, rank) for code in codes)
        # Padding sees padding, so that its softmax is finite too.
        bias = torch.where(own, 0.0, float("-inf")).to(logits.dtype)
        if others:
            rounds = others[0].to(bias.dtype)
            for more in others[1:]:
                rounds += more
            bias -= rounds.log1p_()
        bias.diagonal(self.chunk_length, -2, -1).sub_(SELF_PENALTY)  # a chunk's own tokens are its last keys
        logits = logits + bias
        normaliser = logits.logsumexp(dim=-1, keepdim=True)
        out = (logits - normaliser).exp().to(values.dtype) @ values
        return out.flatten(2, 3), normaliser.flatten(2, 3)

    def _meets(self, code: Tensor, order: Tensor, rank: Tensor) -> Tensor:
        """`(B, H, N / c, c, 2 c)` bool: whether query and key of the sorted chunks meet in the round of this code."""
        chunks = self._chunks(code, order, rank)
        more = chunks - _with_previous(chunks, fill=-2).mT
        return (more == 0) | (more == 1)

    def _chunks(self, x: Tensor, order: Tensor, rank: Tensor) -> Tensor:
        """`(B, H, N, E)` in this order, in chunks: `(B, H, N / c, c, E)`."""
        return _Permuted.apply(x, order, rank).unflatten(2, (-1, self.chunk_length))


class _Permuted(torch.autograd.Function):
    """`(B, H, N, E)` in another order of the tokens; each gradient is written once, in the inverse order.

    Faster on a CPU than `gather`, and on a GPU without sums whose order varies.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return _select(x, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return _select(grad, inverse), None, None


def _select(x: Tensor, order: Tensor) -> Tensor:
    """Rows of `(B, H, N, E)` in the order `(B, H, N)`."""
    _, heads, length, size = x.shape
    first = length * torch.arange(order[..., 0].numel(), device=order.device).view(-1, heads, 1)
    return x.reshape(-1, size).index_select(0, (order + first).flatten()).view(x.shape)


def _with_previous(chunks: Tensor, fill: int = 0) -> Tensor:
    """Each chunk after the one before it, `(…, C, c, E)` → `(…, C, 2 c, E)`; before the first there is `fill`."""
    previous = F.pad(chunks[:, :, :-1], (0, 0, 0, 0, 1, 0), value=fill)
    return torch.cat([previous, chunks], dim=3)
