"""Attention implementations for Hugging Face transformers.

Shapes: B batch, H heads, N tokens, P head dimension. Masks are boolean, True = a real token.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from skyformer.ops.gaussian import gaussian_attention
from skyformer.ops.landmarks import gather_rows, noise_by_rank, uniform_rows
from skyformer.ops.nystrom import nystrom_gaussian_attention
from skyformer.ops.nystrom_softmax import matched_keys, nystrom_softmax_attention


def register() -> None:
    """Make `skyformer`, `skyformer_softmax` and `kernelized` known to transformers as attention implementations.

    `AutoModel.from_pretrained(..., attn_implementation="skyformer")` and `model.set_attn_implementation("skyformer")`
    then take them. A second call changes nothing.

    - `skyformer`: `κ(Q, W) (κ(W, W) + γI)⁻¹ κ(W, K) V`, to train or fine-tune with.
    - `skyformer_softmax`: approximates the softmax attention of a pretrained model, without training.
    - `kernelized`: `κ(Q, K) V`, which `skyformer` approximates.

    `model.config.skyformer = {"num_landmarks": 64}` changes the settings of `Settings`; they are saved with the model.
    Only `kernelized` applies the model's dropout on attention weights; the other two form no such weights.

    The model's forward pass raises `ValueError` for anything but bidirectional attention over one sequence. Unsupported
    are causal models, sliding windows, soft caps, position biases, attention sinks, packed sequences, cross-attention,
    masks per query, and attention weights as an output.

    Raises:
        ImportError: without transformers 5.
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
    except ImportError as error:
        raise ImportError("skyformer.hf needs transformers>=5. Fix: pip install -e '.[hf]'") from error
    for name, attend in (
        ("skyformer", _skyformer),
        ("skyformer_softmax", _skyformer_softmax),
        ("kernelized", _kernelized),
    ):
        AttentionInterface.register(name, _implementation(name, attend))
        # Without a mask function of the same name transformers passes no mask at all, and padding would be attended to.
        AttentionMaskInterface.register(name, padding_mask)


@dataclass(frozen=True)
class Settings:
    """The settings in `config.skyformer`.

    Args:
        num_landmarks: d, rows drawn from [Q; K]. An example of n tokens has at most 2n.
        ridge: γ in κ(W, W) + γI.
        seed: seed of the landmarks in evaluation. In training each call draws new ones from torch's generator.

    Raises:
        ValueError: for a value that makes no sense, naming it.
    """

    num_landmarks: int = 128
    ridge: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.num_landmarks, int) or self.num_landmarks < 1:
            raise ValueError(
                f"config.skyformer: num_landmarks must be an integer of at least 1 (got {self.num_landmarks!r}). "
                "Fix: set 128"
            )
        if not isinstance(self.ridge, int | float) or not self.ridge > 0:
            raise ValueError(f"config.skyformer: ridge must be a number above 0 (got {self.ridge!r}). Fix: set 0.1")
        if not isinstance(self.seed, int):
            raise ValueError(f"config.skyformer: seed must be an integer (got {self.seed!r}). Fix: set 0")

    @classmethod
    def of(cls, module: nn.Module) -> "Settings":
        """Return the settings in the configuration of a transformers attention module, or the defaults."""
        given = getattr(getattr(module, "config", None), "skyformer", None) or {}
        known = [field.name for field in fields(cls)]
        if not isinstance(given, Mapping) or not given.keys() <= set(known):
            raise ValueError(f"config.skyformer must be a dict of {', '.join(known)} (got {given!r}). Fix: correct it")
        return cls(**given)


def padding_mask(
    *, mask_function: Callable, attention_mask: Tensor | None, config: Any = None, **_: Any
) -> Tensor | None:
    """The mask function of all implementations: the tokenizer's mask as it is, `(B, N)` bool, or None.

    Raises:
        ValueError: for a mask that differs between queries, such as a causal one.
    """
    from transformers.masking_utils import bidirectional_mask_function

    if mask_function is not bidirectional_mask_function:
        name, model = (getattr(config, key, "unknown") for key in ("_attn_implementation", "model_type"))
        raise ValueError(
            f"attention implementation {name!r} attends to all tokens, but {model} asks for a causal or windowed mask. "
            "Fix: use a bidirectional encoder, or attn_implementation='sdpa'"
        )
    return attention_mask


# Arguments of attention functions in transformers that change the scores.
_UNSUPPORTED = {
    "is_causal": "causal attention",
    "sliding_window": "a sliding window",
    "softcap": "a soft cap on the scores",
    "position_bias": "a position bias",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "indices": "a choice of keys for each query",
    "block_indices": "a choice of keys for each query",
    "cu_seq_lens_q": "packed sequences",
    "cu_seqlens": "packed sequences",
    "output_attentions": "attention weights as an output",
}


def _check(
    name: str, module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, arguments: dict[str, Any]
) -> None:
    given = {argument for argument, value in arguments.items() if value is not None and value is not False}
    unsupported = [what for argument, what in _UNSUPPORTED.items() if argument in given]
    if arguments.get("is_causal") is None and getattr(module, "is_causal", False):
        unsupported.append(_UNSUPPORTED["is_causal"])
    if query.shape[2] != key.shape[2]:
        unsupported.append(f"cross-attention or a cache ({query.shape[2]} queries, {key.shape[2]} keys)")
    elif mask is not None and (mask.dtype != torch.bool or mask.shape != (query.shape[0], query.shape[2])):
        unsupported.append(f"a mask of shape {tuple(mask.shape)} and type {mask.dtype}; it takes (B, N), boolean")
    if unsupported:
        raise ValueError(
            f"attention implementation {name!r} does not support {unsupported[0]} (got it from "
            f"{type(module).__name__}). Fix: set another attn_implementation for this model, such as 'sdpa' or 'eager'"
        )


def _implementation(name: str, attend: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, None]]:
    """`attend(module, query, key, value, mask, scale, dropout)` as what transformers calls."""

    def implementation(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **arguments: Any,
    ) -> tuple[Tensor, None]:
        """`(B, H, N, P)` three times → `(B, N, H, P)`, and no attention weights."""
        _check(name, module, query, key, attention_mask, arguments)
        groups = query.shape[1] // key.shape[1]  # queries that share a key, in grouped-query attention
        if groups > 1:
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        # `scaling` multiplies the scores, `scale` query and key.
        scale = (query.shape[-1] ** -0.5 if scaling is None else scaling) ** 0.5
        out = attend(module, query, key, value, attention_mask, scale, dropout)
        return out.to(value.dtype).transpose(1, 2).contiguous(), None

    return implementation


def _kernelized(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, dropout: float
) -> Tensor:
    return gaussian_attention(query, key, value, mask, scale=scale, dropout_p=dropout)


def _skyformer(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, dropout: float
) -> Tensor:
    settings = Settings.of(module)
    landmarks, landmark_mask = _landmarks(module, query, key, mask, scale, settings)
    return nystrom_gaussian_attention(
        query, key, value, landmarks, mask, settings.ridge, scale=scale, landmark_mask=landmark_mask
    )


def _skyformer_softmax(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, dropout: float
) -> Tensor:
    settings = Settings.of(module)
    key = matched_keys(query, key, mask)
    landmarks, landmark_mask = _landmarks(module, query.to(key.dtype), key, mask, scale, settings)
    return nystrom_softmax_attention(
        query, key, value, landmarks, mask, settings.ridge, scale=scale, landmark_mask=landmark_mask
    )


def _landmarks(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, scale: float, settings: Settings
) -> tuple[Tensor, Tensor | None]:
    """Scaled rows of [Q; K], `(B, H, D, P)`, and which of them take part, `(B, D)` bool or None.

    As in `SkyformerAttention`, they are new for each example in training. In evaluation they are a function of the
    number of tokens.
    """
    batch, _, length, _ = query.shape
    if module.training:
        noise = torch.rand((batch, 2, length), dtype=torch.float32, device=query.device)
    else:
        # The k-th pair is that of the k-th token, whatever the length.
        pairs = torch.rand((length, 2), generator=torch.Generator().manual_seed(settings.seed), dtype=torch.float32)
        noise = pairs.T[None].to(query.device)
    rows, valid = uniform_rows(noise_by_rank(noise, mask), mask, settings.num_landmarks)
    return gather_rows(query, key, rows, distinct=True) * scale, valid
