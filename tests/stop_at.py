"""A callback that ends the process as the outside world would, for tests of resuming."""

import os
import signal
from typing import Any

from lightning import Callback, LightningModule, Trainer


class StopAt(Callback):
    """Sends the process a signal at the end of a training step.

    Args:
        step: number of finished optimiser steps.
        name: of the signal.
    """

    def __init__(self, step: int, name: str = "SIGKILL") -> None:
        self.step = step
        self.name = name

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.Signals[self.name])
