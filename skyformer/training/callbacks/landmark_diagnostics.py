"""Condition number and error of Skyformer's approximation during training."""

import math
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from skyformer.attention import SkyformerAttention
from skyformer.model.encoder import attention_inputs
from skyformer.ops.kernel import gaussian_kernel
from skyformer.ops.linalg import matrix_norm
from skyformer.ops.nystrom import nystrom_gaussian_attention, regularized_gram

MAX_EXAMPLES = 2
MAX_TOKENS = 1024


class LandmarkDiagnostics(Callback):
    """On the first batch of each validation, for each layer with `SkyformerAttention`, logs

    - `condition_number/layer<i>` of κ(W, W) + γI, the largest over heads;
    - `spectral_error/layer<i>`, ‖C̃ − C‖₂ / ‖C‖₂ against exact kernelized attention, the mean over heads.

    Both use the first two documents of the batch. The error uses at most 1,024 evenly spaced tokens.
    """

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if batch_idx or trainer.sanity_checking or not _has_landmarks(pl_module):
            return
        length = batch.tokens.shape[-1]  # of two documents an example, the first two count
        first: list[Any] = [
            None if tensor is None else tensor.reshape(-1, length)[:MAX_EXAMPLES]
            for tensor in (batch.tokens, batch.mask, batch.position)
        ]
        seen = attention_inputs(pl_module.encoder, *first)
        own = [(layer, inputs) for layer, inputs in seen if isinstance(layer, SkyformerAttention)]
        for number, (layer, inputs) in enumerate(own):
            condition, error = measure(layer, *inputs)
            pl_module.log(f"condition_number/layer{number}", condition, batch_size=1)
            pl_module.log(f"spectral_error/layer{number}", error, batch_size=1)


def _has_landmarks(module: LightningModule) -> bool:
    return any(isinstance(part, SkyformerAttention) for part in module.modules())


@torch.no_grad()
def measure(
    layer: SkyformerAttention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[float, float]:
    """(condition number, relative spectral error) of a layer on `(B, H, N, P)` inputs; see `LandmarkDiagnostics`. NaN
    where the inputs are not finite.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, key = query.float(), key.float()
        landmarks, landmark_mask = layer.landmarks(query, key, mask)
        gram = regularized_gram(landmarks, layer.ridge, landmark_mask)
        if not gram.isfinite().all():  # LAPACK would raise
            return math.nan, math.nan
        eigenvalues = torch.linalg.eigvalsh(gram)
        condition = (eigenvalues[..., -1] / eigenvalues[..., 0]).max()
        errors = [
            _spectral_error(layer, query[i], key[i], landmarks[i], _row(mask, i), _row(landmark_mask, i))
            for i in range(len(query))
        ]
    return condition.item(), sum(errors) / len(errors)


def _row(mask: Tensor | None, index: int) -> Tensor | None:
    return None if mask is None else mask[index]


def _spectral_error(
    layer: SkyformerAttention,
    query: Tensor,
    key: Tensor,
    landmarks: Tensor,
    mask: Tensor | None,
    landmark_mask: Tensor | None,
) -> float:
    """‖C̃ − C‖₂ / ‖C‖₂ of one example, `(H, N, P)`, over its real tokens."""
    tokens = torch.arange(query.shape[1], device=query.device) if mask is None else mask.nonzero()[:, 0]
    if len(tokens) == 0:
        return 0.0
    spread = torch.linspace(0, len(tokens) - 1, min(len(tokens), MAX_TOKENS), device=query.device).round().long()
    query, key = query[None, :, tokens[spread]], key[None, :, tokens[spread]]
    identity = torch.eye(len(spread), device=query.device).expand(1, query.shape[1], -1, -1)
    scale = query.shape[-1] ** -0.25
    exact = gaussian_kernel(query * scale, key * scale)
    kept = None if landmark_mask is None else landmark_mask[None]
    approximate = nystrom_gaussian_attention(
        query, key, identity, landmarks[None], ridge=layer.ridge, solver=layer.solver, landmark_mask=kept
    )
    return (matrix_norm(approximate - exact) / matrix_norm(exact)).mean().item()
