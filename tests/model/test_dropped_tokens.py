"""Black pixels left out of the sequence give what masking them gives."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules.batches import Batch
from datamodules.image_batches import ImageBatches
from datamodules.prepared.split import Split
from skyformer.attention import (
    BigBirdAttention,
    InformerAttention,
    KernelizedAttention,
    LinformerAttention,
    NystromformerAttention,
    PerformerAttention,
    ReformerAttention,
    SkyformerAttention,
    SoftmaxAttention,
)
from skyformer.attention.base import Attention
from skyformer.model.classifier import SequenceClassifier
from skyformer.training.callbacks.images import _pixels

SIDE = 12
COUNT = 5


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Two thirds black, the last one wholly."""
    random = np.random.default_rng(0)
    pixels = random.integers(1, 256, (COUNT, SIDE * SIDE)) * (random.random((COUNT, SIDE * SIDE)) < 1 / 3)
    pixels[:, 0] = 0  # `cls` must not read the first place
    pixels[-1] = 0
    return pixels.astype(np.uint8)


@pytest.fixture(scope="module")
def dropped(pictures) -> Batch:
    offsets = np.arange(COUNT + 1) * SIDE * SIDE
    batch = ImageBatches(Split(pictures.ravel(), offsets, np.zeros(COUNT, np.uint8)), drop_black=True).__getitems__(
        range(COUNT)
    )
    assert batch.tokens.shape == (COUNT, 64), "shorter than the 144 pixels"
    return batch


def skyformer(heads: int, head_dim: int, length: int, **settings) -> SkyformerAttention:
    return SkyformerAttention(heads, head_dim, length, **{"num_landmarks": 16, **settings})


ATTENTIONS: dict[str, Callable[[int, int, int], Attention]] = {
    "softmax": SoftmaxAttention,
    "kernelized": KernelizedAttention,
    "skyformer": skyformer,
    "half and half": lambda *sizes: skyformer(*sizes, landmark_draw="half_and_half"),
    "informer": lambda *sizes: InformerAttention(*sizes, num_queries=9),
    "performer": PerformerAttention,
    "reformer": lambda *sizes: ReformerAttention(*sizes, num_buckets=4, chunk_length=8),
    # These go by the place, so that the black pixels are put back.
    "nystromformer": lambda *sizes: NystromformerAttention(*sizes, num_landmarks=9, conv_kernel=5),
    "linformer": lambda *sizes: LinformerAttention(*sizes, projected_length=9),
    "bigbird": lambda *sizes: BigBirdAttention(*sizes, block_size=12, num_random_blocks=1),
}


def kept(tokens: Tensor) -> Tensor:
    """The mask of pixels that are not black; of an image of black pixels only, its first."""
    mask = tokens != 0
    mask[:, 0] |= ~mask.any(dim=1)
    return mask


def scores_and_gradient(model: SequenceClassifier, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
    scores = model(*inputs)
    (gradient,) = torch.autograd.grad(scores.square().sum(), model.encoder.positions.weight)
    return scores.detach(), gradient


@pytest.mark.parametrize("pooling", ["mean", "padded_mean", "max", "cls", "attention"])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_scores_and_gradients_are_those_of_masking(attention, pooling, pictures, dropped):
    """In evaluation, where the landmarks are the same."""
    torch.manual_seed(0)
    model = SequenceClassifier(
        ATTENTIONS[attention], torch.optim.SGD, max_length=SIDE * SIDE, embed_dim=16, hidden_dim=16, pooling=pooling
    )
    model = model.double().eval()
    tokens = torch.from_numpy(pictures.astype(np.int64))
    masked = scores_and_gradient(model, tokens, kept(tokens))
    left_out = scores_and_gradient(model, dropped.tokens, dropped.mask, dropped.position)
    for expected, found in zip(masked, left_out, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    shifted = model(dropped.tokens, dropped.mask)
    assert not torch.allclose(shifted, masked[0], rtol=1e-4), "positions matter"


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_hidden_pixels_are_those_of_masking(attention, pictures, dropped):
    """In an evaluation of masked tokens: the same pixels, none of them black, with the same loss and predictions."""
    torch.manual_seed(0)
    model = SequenceClassifier(
        ATTENTIONS[attention],
        torch.optim.SGD,
        max_length=SIDE * SIDE,
        embed_dim=16,
        hidden_dim=16,
        objective="masked_tokens",
        mask_ratio=0.5,
    )
    model = model.double().eval()
    tokens, example = torch.from_numpy(pictures.astype(np.int64)), torch.arange(COUNT)
    masked = model._masked_batch(tokens, kept(tokens), None, example)
    left_out = model._masked_batch(dropped.tokens, dropped.mask, dropped.position, example)
    assert masked.number == left_out.number > 0
    torch.testing.assert_close(left_out.loss, masked.loss, rtol=1e-9, atol=0)
    for part in ("masked", "predicted"):
        whole, restored = (_pixels(getattr(b, part).long(), b.position, SIDE) for b in (masked, left_out))
        assert torch.equal(whole, restored)
    assert not (masked.masked & ~kept(tokens)).any()


def test_training_gradients_are_those_of_masking_with_every_row_a_landmark(pictures, dropped):
    """Where there is nothing to draw, training is the same too."""
    torch.manual_seed(0)
    model = SequenceClassifier(
        lambda *sizes: skyformer(*sizes, num_landmarks=2 * SIDE * SIDE),
        torch.optim.SGD,
        max_length=SIDE * SIDE,
        embed_dim=16,
        hidden_dim=16,
        dropout=0.0,
    ).double()
    tokens = torch.from_numpy(pictures.astype(np.int64))
    masked = scores_and_gradient(model, tokens, kept(tokens))
    left_out = scores_and_gradient(model, dropped.tokens, dropped.mask, dropped.position)
    for expected, found in zip(masked, left_out, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_picture_is_whole_again_for_a_person(pictures, dropped):
    assert np.array_equal(_pixels(dropped.tokens, dropped.position, SIDE).numpy(), pictures.reshape(-1, SIDE, SIDE))
