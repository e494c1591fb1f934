"""The objective of masked tokens: which are hidden, the loss over them, and the loss in addition to that of classes."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from skyformer.attention import SoftmaxAttention
from skyformer.exceptions import RunError
from skyformer.model.classifier import SequenceClassifier
from skyformer.model.masked_tokens import MaskedTokens, evaluation_draws

LENGTH, VOCABULARY = 12, 5


def make_model(**settings) -> SequenceClassifier:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "max_length": LENGTH, "embed_dim": 8, "hidden_dim": 8, "dropout": 0.0}
    return SequenceClassifier(SoftmaxAttention, torch.optim.SGD, **{**sizes, **settings}).double()


def make_batch(batch: int = 4, documents: int = 1) -> tuple[Tensor, Tensor]:
    """Tokens and mask of documents of several lengths."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, VOCABULARY, (batch, documents, LENGTH), generator=generator)
    lengths = torch.randint(5, LENGTH + 1, (batch, documents, 1), generator=generator)
    mask = torch.arange(LENGTH) < lengths
    return (tokens * mask).squeeze(1), mask.squeeze(1)


@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_loss_is_the_mean_over_masked_tokens(fixed_shapes):
    """Worked out by hand. The encoder's vector is the id itself, so that of a hidden token is 3: its scores are 0, ln 2
    and ln 5, and its probabilities 1/8, 2/8 and 5/8. Hidden are a 1, a 2 and a 2; the fourth draw below 0.5 is padding.
    """
    objective = MaskedTokens(1, 3, 0.5).double()
    with torch.no_grad():
        objective.output.weight.copy_(torch.tensor([[0], [math.log(2) / 3], [math.log(5) / 3]], dtype=torch.float64))
        objective.output.bias.zero_()
    seen = []

    def encoder(tokens, mask, position):
        seen.append(tokens)
        return tokens[..., None].double()

    tokens = torch.tensor([[1, 2, 1], [2, 2, 0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    draws = torch.tensor([[0.1, 0.9, 0.5], [0.49, 0.0, 0.2]])
    found = objective(encoder, tokens, mask, None, draws, fixed_shapes)
    assert seen[0].tolist() == [[3, 2, 1], [3, 3, 0]]
    assert found.masked.tolist() == [[True, False, False], [True, True, False]]
    assert found.predicted.tolist() == [[2, 2, 1], [2, 2, 0]]
    assert found.number == 3
    assert found.accuracy.item() == pytest.approx(2 / 3)
    assert found.loss.dtype == torch.float64
    assert found.loss.item() == pytest.approx(-(math.log(2 / 8) + 2 * math.log(5 / 8)) / 3, rel=1e-14)
    # The gradient of the bias: the mean of probabilities minus one-hot targets.
    (gradient,) = torch.autograd.grad(found.loss, objective.output.bias)
    expected = torch.tensor([1 / 8, 2 / 8 - 1 / 3, 5 / 8 - 2 / 3], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_batch_without_a_hidden_token(fixed_shapes):
    model = make_model(objective="masked_tokens")
    tokens, mask = make_batch()
    draws = torch.ones(tokens.shape)
    found = model.masked_tokens(model.encoder, tokens, mask, None, draws, fixed_shapes)
    assert (found.loss.item(), found.accuracy.item(), found.number.item()) == (0.0, 0.0, 0)
    found.loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def no_encoder(tokens: Tensor, mask: Tensor | None, position: Tensor | None) -> Tensor:
    return torch.zeros(*tokens.shape, 8, dtype=torch.float64)


def test_share_of_masked_tokens():
    """Each real token independently, and no padding: within four standard deviations."""
    model = make_model(objective="masked_tokens", mask_ratio=0.3, max_length=2000)
    tokens, mask = torch.ones(8, 2000, dtype=torch.int64), torch.arange(2000) < torch.tensor([[1500]] * 8)
    with torch.no_grad():
        torch.manual_seed(3)
        first = model._masked_batch(tokens[:, :LENGTH], None, None).masked
        torch.manual_seed(3)
        assert torch.equal(model._masked_batch(tokens[:, :LENGTH], None, None).masked, first), "the seed decides"
    for draws in (torch.rand(tokens.shape), evaluation_draws(torch.arange(8), 1, 2000)):
        hidden = model.masked_tokens(no_encoder, tokens, mask, None, draws).masked
        assert not hidden[~mask].any()
        assert abs(hidden.sum().item() - 0.3 * 12_000) < 4 * (12_000 * 0.3 * 0.7) ** 0.5
        pairs = (hidden[:, 1:1500] & hidden[:, :1499]).sum().item()
        assert abs(pairs / (8 * 1499) - 0.09) < 0.02, "neighbours are independent"


def test_evaluation_hides_the_same_tokens_of_an_example_whatever_its_batch():
    alone = evaluation_draws(torch.tensor([7]), 2, 30)
    together = evaluation_draws(torch.tensor([3, 7]), 2, 30)
    assert together.shape == (4, 30)
    assert torch.equal(together[2:], alone)
    assert not torch.equal(together[2], together[3]), "of each document others"
    model = make_model(objective="masked_tokens", mask_ratio=0.5).eval()
    tokens, mask = make_batch()
    example = torch.arange(4)
    whole = model._masked_batch(tokens, mask, None, example)
    parts = [model._masked_batch(tokens[i, None, :11], mask[i, None, :11], None, example[i, None]) for i in range(4)]
    kept = whole.masked[:, :11]
    assert torch.equal(torch.cat([part.masked for part in parts]), kept)


def test_two_documents_are_two_sequences():
    model = make_model(objective="masked_tokens", mask_ratio=0.5, num_documents=2).eval()
    tokens, mask = make_batch(documents=2)
    found = model._masked_batch(tokens, mask, None, torch.arange(4))
    assert found.masked.shape == (8, LENGTH)
    assert (found.masked & ~mask.flatten(0, 1)).sum() == 0
    inputs = tokens.flatten(0, 1).masked_fill(found.masked, VOCABULARY)
    scores = model.masked_tokens.output(model.encoder(inputs, mask.flatten(0, 1)))
    expected = F.cross_entropy(scores[found.masked], tokens.flatten(0, 1)[found.masked])
    torch.testing.assert_close(found.loss, expected)


def test_loss_in_addition_to_that_of_classes():
    model = make_model(mlm_weight=0.25, mask_ratio=0.5)
    tokens, mask = make_batch()
    label = torch.tensor([0, 1, 1, 0])
    torch.manual_seed(5)
    total, accuracy, masked_loss = model._loss_and_accuracy(tokens, mask, None, label)
    torch.manual_seed(5)
    expected_masked = model._masked_batch(tokens, mask, None).loss
    scores = model(tokens, mask)
    torch.testing.assert_close(masked_loss, expected_masked)
    torch.testing.assert_close(total, F.cross_entropy(scores, label) + 0.25 * expected_masked)
    assert accuracy == (scores.argmax(dim=1) == label).float().mean()
    total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters()), "DDP waits for each of them"


def test_pretraining_trains_every_parameter():
    model = make_model(objective="masked_tokens")
    tokens, mask = make_batch()
    model._loss_and_accuracy(tokens, mask, None, torch.zeros(4, dtype=torch.int64))[0].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.encoder.tokens.num_embeddings == VOCABULARY + 1
    assert make_model().encoder.tokens.num_embeddings == VOCABULARY


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"objective": "masked"}, "objective='masked' is not one of"),
        ({"objective": "masked_tokens", "mask_ratio": 0.0}, "mask_ratio=0.0 must be above 0 and below 1"),
        ({"mlm_weight": 0.1, "mask_ratio": 1.0}, "mask_ratio=1.0 must be above 0 and below 1"),
        ({"mask_ratio": 3.0}, "mask_ratio=3.0 must be above 0 and below 1"),
        ({"mlm_weight": -0.1}, "mlm_weight=-0.1 must be a number, 0 or more"),
        ({"mlm_weight": math.inf}, "mlm_weight=inf must be a number, 0 or more"),
        ({"objective": "masked_tokens", "mlm_weight": 0.1}, "mlm_weight=0.1 has no effect"),
        ({"objective": "masked_tokens", "label_smoothing": 0.1}, "label_smoothing=0.1 has no effect"),
        ({"objective": "masked_tokens", "class_weights": [1.0, 2.0]}, "class_weights=.* has no effect"),
    ],
)
def test_setting_without_a_meaning_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        make_model(**settings)


def test_pretrained_model_has_no_class_scores():
    with pytest.raises(RunError, match=r"no class scores. Fix: .*model.init_from"):
        make_model(objective="masked_tokens")(*make_batch())
