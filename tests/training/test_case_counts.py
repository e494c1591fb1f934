"""The accuracy of each kind of test examples."""

from types import SimpleNamespace

import torch

from skyformer.model.head import UNLABELLED
from skyformer.training.callbacks.label_counts import CaseCounts

ONE_PROCESS = SimpleNamespace(strategy=SimpleNamespace(reduce=lambda counts, reduce_op: counts))


def test_kinds_of_equal_name_are_counted_together():
    counts = CaseCounts(("16 tokens, 2 pairs", "16 tokens, 2 pairs", "8 tokens, 1 pair", "none"), torch.device("cpu"))
    example = torch.arange(40)
    label = torch.where(example % 4 == 3, UNLABELLED, 1)
    # The first kind is right in 5 of 10 examples, the second in all 10, the third in none.
    predicted = ((example % 4 == 1) | (example % 8 == 0)).long()
    batch = SimpleNamespace(example=example, label=label)
    counts.add(batch, torch.nn.functional.one_hot(predicted[label != UNLABELLED], 2))
    assert counts.accuracies(ONE_PROCESS) == {"16 tokens, 2 pairs": 0.75, "8 tokens, 1 pair": 0.0}
