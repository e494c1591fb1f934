"""A callback that ends the process as the outside world would, for tests of resuming."""

import os
import signal
from typing import Any

from lightning import Callback, LightningModule, Trainer


class StopAt(Callback):
    """Sends the process a signal at the end of a training step, or in the middle of the validation after it.

    Args:
        step: number of finished optimiser steps.
        name: of the signal.
        in_evaluation: whether to wait for the second batch of the evaluation.
        rank: of the process that it comes to.
        group: whether it comes to the loader's processes too, as Ctrl-C in a terminal does.
    """

    def __init__(
        self, step: int, name: str = "SIGKILL", in_evaluation: bool = False, rank: int = 0, group: bool = False
    ) -> None:
        self.send = os.killpg if group else os.kill
        self.step = step
        self.rank = rank
        self.name = name
        self.in_evaluation = in_evaluation

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.global_step == self.step and self.in_evaluation and batch_idx == 1:
            self.send(os.getpid(), signal.Signals[self.name])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step and not self.in_evaluation and trainer.global_rank == self.rank:
            self.send(os.getpid(), signal.Signals[self.name])


class StopInTest(Callback):
    """Sends the process a signal during the first batch of a test, a validation or a prediction.

    Args:
        name: of the signal.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        os.kill(os.getpid(), signal.Signals[self.name])

    on_predict_batch_end = on_validation_batch_end = on_test_batch_end
