"""A label for each token: scores, loss and gradients of labelled tokens only."""

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException

from datamodules.batches import Batch
from skyformer.attention import BACKENDS
from skyformer.model.classifier import SequenceClassifier
from skyformer.model.head import UNLABELLED


def model_of(attention="softmax", **settings) -> SequenceClassifier:
    torch.manual_seed(0)
    sizes = {"vocab_size": 12, "num_classes": 12, "max_length": 64, "embed_dim": 8, "hidden_dim": 8, "dropout": 0.0}
    return SequenceClassifier(
        **{**sizes, "pooling": "none", **settings}, attention=BACKENDS[attention], optimizer=torch.optim.Adam
    )


def batch_of(length: int = 40) -> Batch:
    """Three examples, the second of ten tokens less; every third token has a label."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 12, (3, length), generator=generator)
    mask = torch.arange(length) < torch.tensor([[length], [length - 10], [length]])
    label = torch.where(mask & (torch.arange(length) % 3 == 0), tokens.flip(1).clamp(min=2), UNLABELLED)
    return Batch(tokens * mask, mask, label, torch.arange(3))


@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_loss_is_the_mean_over_labelled_tokens(fixed_shapes):
    model, batch = model_of().double(), batch_of()
    scores = model(batch.tokens, batch.mask)
    assert scores.shape == (3, 40, 12)
    terms = [
        -scores[row, place].log_softmax(dim=-1)[batch.label[row, place]]
        for row in range(3)
        for place in range(40)
        if batch.label[row, place] != UNLABELLED
    ]
    found, label = model._labelled(batch.tokens, batch.mask, None, batch.label, fixed_shapes)
    assert torch.allclose(F.cross_entropy(found, label), torch.stack(terms).mean())
    loss, accuracy = model.training_losses(batch)
    assert torch.allclose(loss, torch.stack(terms).mean())
    right = (scores.argmax(dim=-1) == batch.label).sum() / len(terms)
    assert torch.allclose(accuracy, right)


def test_gradients_reach_the_scores_of_labelled_tokens_only():
    model, batch = model_of(), batch_of()
    scores = []
    model.head.register_forward_hook(lambda head, given, made: scores.append(made))
    found, label = model._labelled(batch.tokens, batch.mask, None, batch.label, fixed_shapes=True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(found, label), scores)
    has_gradient = gradient.abs().sum(dim=-1) > 0
    assert torch.equal(has_gradient, batch.label != UNLABELLED)


@pytest.mark.parametrize("attention", BACKENDS)
def test_every_backend_scores_each_token(attention):
    model, batch = model_of(attention), batch_of()
    loss, _ = model.training_losses(batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters() if weight.grad is not None)
    model.eval()
    scores, label = model.scores_and_labels(batch)
    assert scores.shape == (len(label), 12)
    assert torch.allclose(scores, model(batch.tokens, batch.mask)[batch.label != UNLABELLED], atol=1e-5)


@pytest.mark.parametrize(
    ("pooling", "label", "said"),
    [
        ("mean", batch_of().label, "pooling=mean: the data has a label for each token. Fix: --model.pooling none"),
        ("none", torch.tensor([0, 1, 2]), "pooling=none: the data has a label for each example. Fix: .* mean"),
    ],
)
def test_pooling_that_does_not_fit_the_labels_is_refused(pooling, label, said):
    with pytest.raises(MisconfigurationException, match=said):
        model_of(pooling=pooling).training_losses(batch_of()._replace(label=label))


def test_pairs_have_no_token_labels():
    with pytest.raises(ValueError, match="pooling=none scores tokens of one document"):
        model_of(num_documents=2)
