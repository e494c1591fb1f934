"""Skyformer's attention: the Gaussian kernel approximated by the Nyström method."""

from typing import Literal

import torch
from torch import Tensor

from skyformer.attention.base import Attention
from skyformer.ops.checks import check_above_zero, check_at_least_one, check_choice
from skyformer.ops.landmarks import gather_rows, half_and_half_rows, noise_by_rank, uniform_rows
from skyformer.ops.nystrom import Solver, nystrom_gaussian_attention

LandmarkDraw = Literal["uniform", "half_and_half"]
EvalLandmarks = Literal["fixed", "fresh"]


class SkyformerAttention(Attention):
    """`κ(Q, W) (κ(W, W) + γI)⁻¹ κ(W, K) V` (Skyformer, Eq. 4–6), O(N d p) time and O(N d) memory.

    W are d rows sampled from [Q; K]. Each example has its own sample, which its heads share. In training it is new at
    every step, from torch's generator. In `eval()` it comes from numbers that are drawn once from `seed` and saved with
    the weights, one for each real token. An example's landmarks then depend only on its number of tokens.

    Args:
        num_heads, head_dim, max_length: see `Attention`.
        num_landmarks: d. An example of n tokens has at most 2n.
        ridge: γ in κ(W, W) + γI.
        solver: `cholesky` is exact; `newton_schulz` is the paper's iteration (§4.4), six steps.
        landmark_draw: `uniform` over the valid rows of [Q; K], without replacement; `half_and_half`, as in the
            published code: half of them from Q, half from K, with replacement.
        eval_landmarks: `fixed` in `eval()`, or `fresh` at every call, as in the published code.
        seed: seed of the fixed draw.

    Raises:
        ValueError: for an invalid argument, naming it and valid values.
    """

    eval_noise: Tensor

    def __init__(
        self, num_heads: int, head_dim: int, max_length: int,
        num_landmarks: int = 128, ridge: float = 0.1, solver: Solver = "cholesky",
        landmark_draw: LandmarkDraw = "uniform", eval_landmarks: EvalLandmarks = "fixed", seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(num_heads, head_dim, max_length)
        check_at_least_one(num_landmarks=num_landmarks)
        check_choice("solver", solver, Solver)
        check_choice("landmark_draw", landmark_draw, LandmarkDraw)
        check_choice("eval_landmarks", eval_landmarks, EvalLandmarks)
        if landmark_draw == "half_and_half" and num_landmarks % 2:
            raise ValueError(f"num_landmarks={num_landmarks} must be even for landmark_draw='half_and_half'")
        check_above_zero(ridge=ridge)
        self.num_landmarks = num_landmarks
        self.ridge = ridge
        self.solver = solver
        self.landmark_draw = landmark_draw
        self.eval_landmarks = eval_landmarks
        size = (2, max_length) if landmark_draw == "uniform" else (num_landmarks,)
        noise = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
        self.register_draw("eval_noise", noise)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        self.check_inputs(query, key, value, mask)
        landmarks, landmark_mask = self.landmarks(query, key, mask)
        return nystrom_gaussian_attention(
            query, key, value, landmarks, mask, self.ridge, self.solver, landmark_mask=landmark_mask
        )

    def landmarks(self, query: Tensor, key: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W after scaling, `(B, H, D, P)`, and which of its rows take part, `(B, D)` bool (None: all of them)."""
        batch, _, length, head_dim = query.shape
        valid: Tensor | None
        if self.landmark_draw == "uniform":
            noise = self._noise(batch, self.eval_noise[:, torch.arange(length, device=query.device)])
            rows, valid = uniform_rows(noise_by_rank(noise, mask), mask, self.num_landmarks)
        else:
            tokens = query.new_ones((batch, length), dtype=torch.bool) if mask is None else mask
            rows, valid = half_and_half_rows(self._noise(batch, self.eval_noise), tokens)
        landmarks = gather_rows(query, key, rows, distinct=self.landmark_draw == "uniform")
        return landmarks * head_dim**-0.25, None if mask is None else valid

    def _noise(self, batch: int, fixed: Tensor) -> Tensor:
        """Uniform numbers for the draw: new for each example, or the fixed ones `(1, …)` for all of them."""
        if self.training or self.eval_landmarks == "fresh":
            return torch.rand((batch, *fixed.shape), dtype=torch.float32, device=fixed.device)
        return fixed[None]
