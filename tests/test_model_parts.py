"""Pooling and the head for two documents, against values worked out by hand."""

import pytest
import torch

from skyformer.attention import SoftmaxAttention
from skyformer.head import ClassificationHead, pool
from skyformer.model import SequenceClassifier

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
