"""Count the labels of an evaluation, and the correct predictions of each kind of test examples."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from skyformer.model.head import UNLABELLED
from skyformer.model.masked_tokens import MaskedBatch


class LabelCounts:
    """Counts of each label, or of each masked token, in the batches of an evaluation, over all processes."""

    def __init__(self, module: LightningModule) -> None:
        size = module.hparams["vocab_size" if pretrains(module) else "num_classes"]
        self.counts = torch.zeros(size, dtype=torch.int64, device=module.device)
        self.examples = torch.zeros((), dtype=torch.int64, device=module.device)

    def add(self, batch: Any, outputs: Any) -> None:
        labels = outputs.tokens[outputs.masked] if isinstance(outputs, MaskedBatch) else batch.label
        self.counts += torch.bincount(labels[labels != UNLABELLED], minlength=len(self.counts))
        self.examples += len(batch.label)

    def total_and_chance(self, trainer: Trainer) -> tuple[int, float]:
        """The number of labels, and the accuracy of always guessing the most frequent one."""
        counts = trainer.strategy.reduce(self.counts, reduce_op="sum")
        total = int(counts.sum())
        return total, int(counts.max()) / max(total, 1)

    def num_examples(self, trainer: Trainer) -> int:
        """The number of examples."""
        return int(trainer.strategy.reduce(self.examples, reduce_op="sum"))


def pretrains(module: LightningModule) -> bool:
    """Return whether the module predicts masked tokens in place of classes."""
    return module.hparams.get("objective", "classify") != "classify"


class LabelCounter(Callback, ABC):
    """Counts the labels of each evaluation for which `counts_in` is true."""

    @abstractmethod
    def counts_in(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Return whether to count in the current evaluation."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.labels = LabelCounts(pl_module)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        if self.counts_in(trainer, pl_module):
            self.labels.add(batch, outputs)

    on_test_start, on_test_batch_end = on_validation_start, on_validation_batch_end


class CaseCounts:
    """Counts of labels and of correct predictions for each kind of test examples, over all processes.

    Args:
        names: names of the K kinds; example i has kind i modulo K. Kinds of equal name are counted together.
        device: device of the batches.
    """

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self.names = [*dict.fromkeys(names)]
        self.place = torch.tensor([self.names.index(name) for name in names], device=device)
        self.counts = torch.zeros((2, len(self.names)), dtype=torch.int64, device=device)

    def add(self, batch: Any, scores: Tensor) -> None:
        """Count a batch; `scores (L, classes)` are those of its labelled examples or tokens."""
        is_labelled = batch.label != UNLABELLED
        example = batch.example if batch.label.dim() == 1 else batch.example[:, None].expand_as(batch.label)
        case = self.place[example[is_labelled] % len(self.place)]
        is_right = scores.argmax(dim=-1) == batch.label[is_labelled]
        for count, counted in zip(self.counts, (case, case[is_right]), strict=True):
            count += torch.bincount(counted, minlength=len(self.names))

    def accuracies(self, trainer: Trainer) -> dict[str, float]:
        """The accuracy of each kind that has labels."""
        totals, right = trainer.strategy.reduce(self.counts, reduce_op="sum").tolist()
        found = zip(self.names, totals, right, strict=True)
        return {name: correct / total for name, total, correct in found if total}
