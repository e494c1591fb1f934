"""Nyströmformer: softmax attention through the softmax of segment means."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skyformer.attention.base import Attention, attendable
from skyformer.ops.checks import check_at_least_one, check_choice
from skyformer.ops.landmarks import segment_means
from skyformer.ops.linalg import newton_schulz_inverse

PseudoInverse = Literal["iterative", "exact"]
MASKED_LOGIT = -1e30  # a logit whose weight is 0; finite, since an example without tokens has no other


class NystromformerAttention(Attention):
    """`S(Q K̃ᵀ) S(Q̃ K̃ᵀ)⁺ S(Q̃ Kᵀ) V + conv(V)` (Xiong et al., AAAI 2021, Eq. 13–15), O(N m P + m³) time.

    S is the row softmax of products divided by √p. Q̃ and K̃ are the means of m contiguous segments of the real tokens.
    The pseudo-inverse starts from each matrix's own norms. The published code takes the largest of the batch.

    Args:
        num_heads, head_dim, max_length: see `Attention`.
        num_landmarks: m; an example of fewer tokens has as many landmarks as tokens, and the attention is exact.
        pinv: `iterative`, six steps of the paper's Eq. 14, or `exact`.
        conv_kernel: odd width of the convolution that is added, one filter a head; 0 for none.

    Raises:
        ValueError: for an invalid argument, naming it and valid values.
    """

    def __init__(
        self, num_heads: int, head_dim: int, max_length: int,
        num_landmarks: int = 128, pinv: PseudoInverse = "iterative", conv_kernel: int = 33,
    ) -> None:  # fmt: skip
        super().__init__(num_heads, head_dim, max_length)
        check_at_least_one(num_landmarks=num_landmarks)
        check_choice("pinv", pinv, PseudoInverse)
        if conv_kernel < 0 or (conv_kernel and conv_kernel % 2 == 0):
            raise ValueError(f"conv_kernel={conv_kernel} must be odd, or 0 for none")
        self.num_landmarks = num_landmarks
        self.pinv = pinv
        self.conv: nn.Conv2d | None = None
        if conv_kernel:
            shape, padding = (conv_kernel, 1), (conv_kernel // 2, 0)
            self.conv = nn.Conv2d(num_heads, num_heads, shape, padding=padding, groups=num_heads, bias=False)
        self.needs_absolute_positions = conv_kernel > 0

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        self.check_inputs(query, key, value, mask)
        landmark_query, kept = segment_means(query, mask, self.num_landmarks)
        landmark_key, _ = segment_means(key, mask, self.num_landmarks)
        summary = F.scaled_dot_product_attention(landmark_query, key, value, attn_mask=attendable(mask))
        solution = self._solve(landmark_query, landmark_key, kept, summary)
        out = F.scaled_dot_product_attention(query, landmark_key, solution, attn_mask=attendable(kept))
        if self.conv is None:
            return out
        return out + self.conv(value if mask is None else value.masked_fill(~mask[:, None, :, None], 0))

    def _solve(self, query: Tensor, key: Tensor, kept: Tensor | None, summary: Tensor) -> Tensor:
        """`S(Q̃ K̃ᵀ)⁺` times the summary, `(B, H, m, P)`, in float32 at least; the identity for landmarks that an
        example does not have.
        """
        with torch.autocast(query.device.type, enabled=False):
            exact = torch.promote_types(query.dtype, torch.float32)
            logits = query.to(exact) @ key.to(exact).mT * self.head_dim**-0.5
            if kept is None:
                matrix = logits.softmax(dim=-1)
            else:
                pairs = kept[:, None, :, None] & kept[:, None, None, :]
                matrix = logits.masked_fill(~kept[:, None, None, :], MASKED_LOGIT).softmax(dim=-1)
                identity = torch.eye(matrix.shape[-1], dtype=exact, device=matrix.device)
                matrix = torch.where(pairs, matrix, identity)
            inverse = torch.linalg.pinv(matrix) if self.pinv == "exact" else newton_schulz_inverse(matrix)
            return (inverse @ summary.to(exact)).to(summary.dtype)
