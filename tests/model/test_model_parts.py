"""Pooling, the head for two documents, rates of the optimiser, against values worked out by hand."""

import math

import pytest
import torch
from lightning import Trainer

from datamodules.batches import Batch
from skyformer.attention import SoftmaxAttention
from skyformer.model.classifier import SequenceClassifier
from skyformer.model.head import ClassificationHead, pool
from skyformer.model.schedule import LinearOneCycle

VECTORS = torch.tensor([[[1.0, -1.0], [3.0, -5.0], [100.0, 100.0]], [[7.0, 7.0], [2.0, 4.0], [6.0, 0.0]]])
MASK = torch.tensor([[True, True, False], [False, True, True]])


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("mean", [[2.0, -3.0], [4.0, 2.0]]),
        ("padded_mean", [[0.4, -0.6], [0.8, 0.4]]),
        ("max", [[3.0, -1.0], [6.0, 4.0]]),
        ("cls", [[1.0, -1.0], [2.0, 4.0]]),
    ],
)
def test_pooling(pooling, expected):
    torch.testing.assert_close(pool(VECTORS, MASK, pooling, 10), torch.tensor(expected))


@pytest.mark.parametrize("mask", [MASK, None])
def test_attention_pooling_starts_as_the_mean_and_weighs_by_a_learned_query(mask):
    head = ClassificationHead(2, 8, 2, pooling="attention")
    head.layers = torch.nn.Identity()
    torch.testing.assert_close(head(VECTORS, mask, 3), pool(VECTORS, mask, "mean", 3))
    torch.nn.init.constant_(head.query, 0.25)
    expected = []
    for row, real in zip(VECTORS, MASK if mask is None else mask, strict=True):
        tokens = row.tolist() if mask is None else row[real].tolist()
        weights = [math.exp(0.25 * (a + b)) for a, b in tokens]
        total = [sum(w * token[i] for w, token in zip(weights, tokens, strict=True)) for i in (0, 1)]
        expected.append([value / sum(weights) for value in total])
    torch.testing.assert_close(head(VECTORS, mask, 3), torch.tensor(expected))
    assert torch.isfinite(head(VECTORS, torch.zeros_like(MASK), 3)).all(), "an example without tokens"


def test_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="pooling='maxx' is not one of"):
        ClassificationHead(2, 8, 2, pooling="maxx")


def test_pooling_without_a_mask():
    assert pool(VECTORS, None, "max", 3).tolist() == [[100.0, 100.0], [7.0, 7.0]]
    assert pool(VECTORS, None, "cls", 3).tolist() == [[1.0, -1.0], [7.0, 7.0]]
    assert pool(VECTORS, None, "padded_mean", 3)[1].tolist() == pytest.approx([5.0, 11 / 3])


def test_two_documents_become_a_b_ab_and_a_minus_b():
    head = ClassificationHead(2, 8, 2, num_documents=2)
    head.layers = torch.nn.Identity()
    features = head(VECTORS, MASK, 3)
    assert features.tolist() == [[2.0, -3.0, 4.0, 2.0, 8.0, -6.0, -2.0, -5.0]]


def test_pair_is_two_documents_through_one_encoder():
    """Each document padded as it may be, the pair's scores stay."""
    torch.manual_seed(0)
    model = SequenceClassifier(
        SoftmaxAttention, torch.optim.SGD, vocab_size=9, max_length=8, num_documents=2, embed_dim=8, hidden_dim=8
    ).eval()
    first, second = torch.tensor([3, 1, 2]), torch.tensor([8, 4])
    tokens, mask = torch.zeros(1, 2, 6, dtype=torch.long), torch.zeros(1, 2, 6, dtype=torch.bool)
    for place, document in enumerate((first, second)):
        tokens[0, place, : len(document)] = document
        mask[0, place, : len(document)] = True
    a, b = (model.encoder(document[None]).mean(dim=1) for document in (first, second))
    expected = model.head.layers(torch.cat([a, b, a * b, a - b], dim=1))
    torch.testing.assert_close(model(tokens, mask), expected)
    swapped = model(tokens.flip(1), mask.flip(1))
    assert not torch.allclose(swapped, expected)


def test_other_numbers_of_documents_are_refused():
    with pytest.raises(ValueError, match="num_documents=3 must be 1 or 2"):
        ClassificationHead(2, 8, 2, num_documents=3)


def make_model(**arguments):
    return SequenceClassifier(
        SoftmaxAttention, torch.optim.SGD, LinearOneCycle, max_length=8, embed_dim=8, hidden_dim=8, **arguments
    )


def test_positions_follow_the_schedule_at_their_own_rate():
    optimizer, schedule = make_model(positions_lr_factor=0.25).make_optimizer_and_scheduler(10)
    rates = []
    for _ in range(4):
        optimizer.step()
        schedule.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert [positions / others for others, positions in rates] == pytest.approx([0.25] * 4)
    assert rates[3][0] == pytest.approx(0.6 * rates[0][0] / 0.9)


def test_factor_0_holds_the_positions_and_nothing_else():
    model = make_model(positions_lr_factor=0.0)
    optimizer, _ = model.make_optimizer_and_scheduler(10)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert held == {"encoder.positions.weight"}


@pytest.mark.parametrize("factor", [-0.5, float("nan"), float("inf")])
def test_senseless_rate_of_the_positions_is_refused(factor):
    with pytest.raises(ValueError, match=f"positions_lr_factor={factor} must be"):
        make_model(positions_lr_factor=factor)


@pytest.mark.parametrize("weights", [None, [1.0, 4.0, 0.5]])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weights_and_smoothing_act_on_the_training_loss_alone(weights, smoothing, monkeypatch):
    """Σ w_y l / Σ w_y with l = −(1 − s) log p_y; smoothing adds −s/C Σ_c w_c log p_c to the sum above."""
    torch.manual_seed(0)
    model = make_model(num_classes=3, class_weights=weights, label_smoothing=smoothing).eval()
    batch = Batch(torch.randint(256, (4, 8)), None, torch.tensor([0, 1, 1, 2]), torch.arange(4))
    monkeypatch.setattr(model, "log", lambda *args, **settings: None)
    model.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    probabilities = model(batch.tokens).log_softmax(dim=1).tolist()
    each = weights or [1.0, 1.0, 1.0]
    total = 0.0
    for label, row in zip(batch.label.tolist(), probabilities, strict=True):
        total -= (1 - smoothing) * each[label] * row[label]
        total -= smoothing / 3 * sum(weight * value for weight, value in zip(each, row, strict=True))
    expected = total / sum(each[label] for label in batch.label.tolist())
    assert model.training_step(batch, 0).item() == pytest.approx(expected, rel=1e-5)
    model.validation_step(batch, 0)
    plain = -sum(row[label] for label, row in zip(batch.label.tolist(), probabilities, strict=True)) / 4
    assert model.metrics["val"]["loss"].compute().item() == pytest.approx(plain, rel=1e-5)


def test_weights_are_a_setting_and_not_in_the_checkpoint():
    assert make_model(class_weights=[1.0, 2.0]).state_dict().keys() == make_model().state_dict().keys()
