"""The masked-token objective: mask some tokens, and predict them from the others.

Shapes: B sequences, N tokens, D embedding size, V token ids of the task.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skyformer.model.encoder import Encoder
from skyformer.model.head import UNLABELLED
from skyformer.ops.kernel import at_least_float32


class MaskedBatch(NamedTuple):
    """The masked tokens of a batch, and the model's predictions.

    Attributes:
        loss: scalar, at least float32: the mean cross-entropy over masked tokens; 0 where none is masked.
        accuracy: scalar float32, the share of masked tokens that are predicted.
        number: scalar int64, the number of masked tokens.
        tokens: `(B, N)` int64.
        masked: `(B, N)` bool.
        predicted: `(B, N)` int64: the most likely ids of masked tokens, `tokens` elsewhere.
        position: `(B, N)` int64, each token's position in its sequence; None for 0 … N − 1.
    """

    loss: Tensor
    accuracy: Tensor
    number: Tensor
    tokens: Tensor
    masked: Tensor
    predicted: Tensor
    position: Tensor | None


class MaskedTokens(nn.Module):
    """Masks each real token with the same probability, independently, and predicts the ids of the masked ones.

    A masked token has the id V, one more than the task's ids, at its own position. Scores are a linear function of the
    encoder's vectors. As in Amos, Berant, Gupta (ICLR 2024), who pretrain on the task's own training set. BERT (Devlin
    et al., 2019) keeps some masked tokens unchanged or replaces them by random ones. This class does neither.

    Args:
        embed_dim: D.
        vocab_size: V; the encoder has V + 1 ids.
        ratio: probability, above 0 and below 1.
    """

    def __init__(self, embed_dim: int, vocab_size: int, ratio: float) -> None:
        super().__init__()
        self.mask_id = vocab_size
        self.ratio = ratio
        self.output = nn.Linear(embed_dim, vocab_size)

    def forward(
        self,
        encoder: Encoder,
        tokens: Tensor,
        mask: Tensor | None,
        position: Tensor | None,
        draws: Tensor,
        fixed_shapes: bool = False,
    ) -> MaskedBatch:
        """Hide the tokens whose draw lies below the ratio, and predict them.

        Args:
            encoder: with an id more than the task.
            tokens, mask, position: as in `Encoder.forward`.
            draws: `(B, N)` float32, uniform on [0, 1).
            fixed_shapes: score all tokens in place of the masked ones, whose number the CPU does not know. The
                result is the same, and a GPU need not wait.
        """
        masked = draws < self.ratio if mask is None else mask & (draws < self.ratio)
        vectors = encoder(tokens.masked_fill(masked, self.mask_id), mask, position)
        target = tokens.masked_fill(~masked, UNLABELLED)
        if not fixed_shapes:
            vectors, target = vectors[masked], target[masked]
        scores = self.output(vectors)
        exact = scores.to(at_least_float32(scores)).flatten(0, -2)
        number = masked.sum()
        total = F.cross_entropy(exact, target.flatten(), ignore_index=UNLABELLED, reduction="sum")
        guess = scores.detach().argmax(dim=-1)
        predicted = torch.where(masked, guess, tokens) if fixed_shapes else tokens.masked_scatter(masked, guess)
        divisor = number.clamp(min=1)
        accuracy = (masked & (predicted == tokens)).sum() / divisor
        return MaskedBatch(total / divisor, accuracy, number, tokens, masked, predicted, position)


def evaluation_draws(example: Tensor, num_documents: int, max_length: int) -> Tensor:
    """Draws for an evaluation, `(B · num_documents, max_length)` float32, uniform on [0, 1), on the CPU.

    They depend only on the example and the position in its sequence. So every evaluation masks the same tokens, for any
    batch, number of processes and dropped pixels.

    Args:
        example: `(B,)` int64, each example's index in its split.
        num_documents, max_length: sizes of the task.
    """
    size = num_documents, max_length
    draws = [np.random.default_rng(number).random(size, dtype=np.float32) for number in example.tolist()]
    return torch.from_numpy(np.concatenate(draws))
