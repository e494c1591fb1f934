"""Loss and accuracy of a split, over all its examples and all processes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy


class Mean(Metric):
    """Weighted mean of scalars; NaN if one of them is NaN. torchmetrics' mean omits those, or their weights.

    Its sums are float32, also in a half-precision model: in bfloat16, 256 + 1 is 256.
    """

    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, value: Tensor, weight: Tensor | int) -> None:
        self.total += value.to(self.total) * weight
        self.weight += weight

    def compute(self) -> Tensor:
        return self.total / self.weight

    def _apply(self, fn: Callable[..., Any], exclude_state: Sequence[str] = "") -> nn.Module:
        super()._apply(fn, exclude_state)
        if torch.finfo(self.dtype).bits < 32:
            self.set_dtype(torch.float32)
        return self


def make_metrics(num_classes: int | None) -> nn.ModuleDict:
    """Make metrics over all processes, for all examples of a split; without classes, for all masked tokens.

    Lightning's own mean over processes of unequal shares rounds their mean size to a whole number.
    """
    accuracy = Mean() if num_classes is None else MulticlassAccuracy(num_classes, average="micro")
    return nn.ModuleDict({"loss": Mean(), "accuracy": accuracy})
