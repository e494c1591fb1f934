"""A backend and callbacks that make a loss infinite or not a number, or record what a process sees."""

import json
import signal
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from skyformer.attention import SoftmaxAttention


class PoisonedAttention(SoftmaxAttention):
    """Softmax attention, whose output is infinite while `poisoned` is set."""

    poisoned = False

    def forward(self, *inputs: Any) -> torch.Tensor:
        output = super().forward(*inputs)
        return output / 0 if self.poisoned else output


class PoisonStep(Callback):
    """Poisons the second layer for one training batch.

    Args:
        batch: of the epoch.
        rank: of the process; None for all.
    """

    def __init__(self, batch: int, rank: int | None = None) -> None:
        self.batch = batch
        self.rank = rank

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        backend = pl_module.encoder.blocks[1].attention.backend
        backend.poisoned = batch_idx == self.batch and self.rank in (None, trainer.global_rank)


class PoisonEvaluation(Callback):
    """Poisons the second layer for the first batch of each validation."""

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        pl_module.encoder.blocks[1].attention.backend.poisoned = batch_idx == 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.encoder.blocks[1].attention.backend.poisoned = False


class PoisonGradient(Callback):
    """Makes one gradient infinite, with a finite loss.

    Args:
        step: optimiser steps before it.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == self.step:
            pl_module.encoder.norm.weight.grad[3] = torch.inf


class MetricsOfRank(Callback):
    """Writes what a process takes its metrics to be, at the end of fit and of test.

    Args:
        folder: where to.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        numbers = {name: float(value) for name, value in trainer.callback_metrics.items() if "speed" not in name}
        Path(self.folder, f"{trainer.state.fn.value}.{trainer.global_rank}.json").write_text(json.dumps(numbers))


_NOT_YAML = {"signal": signal.SIGTERM}


class NotYaml(Callback):
    """Has a default that YAML cannot hold."""

    def __init__(self, settings: dict = _NOT_YAML) -> None:
        self.settings = settings
