"""A callback that makes a run take its time on any machine."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer


class Slow(Callback):
    """Waits after each batch.

    Args:
        seconds: how long.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        time.sleep(self.seconds)
