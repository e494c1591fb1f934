"""A callback that ends its own process with SIGKILL at a named point, for tests of resuming."""

import os
import signal
from pathlib import Path
from typing import Any, Literal

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from skyformer import files

Point = Literal[
    "batch_start", "after_backward", "before_optimizer_step", "batch_end", "evaluation", "evaluation_end",
    "half_a_checkpoint", "between_two_checkpoints", "checkpoint_written", "half_a_row",
]  # fmt: skip
IN_TRAINING = ("batch_start", "after_backward", "before_optimizer_step", "batch_end")
IN_EVALUATION = ("evaluation", "evaluation_end")
IN_FILES = ("half_a_checkpoint", "between_two_checkpoints", "checkpoint_written", "half_a_row")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class KillAt(Callback):
    """Kills the process at the first time at or after `step` finished optimiser steps that `point` is reached.

    Args:
        point: where; those of files while the last checkpoint, or a row of the log, is being written.
        step: number of finished optimiser steps.
    """

    def __init__(self, point: Point, step: int) -> None:
        self.point = point
        self.step = step
        self.armed = False

    def reach(self, point: Point, trainer: Trainer) -> None:
        self.armed = trainer.global_step >= self.step
        if self.armed and point == self.point:
            die()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        replace, save = os.replace, ExperimentWriter.save

        def replace_or_die(source: Any, target: Any) -> None:
            of_last = self.armed and Path(target).name == "last.ckpt"
            if of_last and self.point == "half_a_checkpoint":
                content = Path(source).read_bytes()
                Path(source).write_bytes(content[: len(content) // 2])
            if of_last and self.point in ("half_a_checkpoint", "between_two_checkpoints"):
                die()
            replace(source, target)
            if of_last and self.point == "checkpoint_written":
                die()

        def save_or_die(writer: ExperimentWriter) -> None:
            save(writer)
            if self.armed and self.point == "half_a_row":
                path = Path(writer.metrics_file_path)
                path.write_bytes(path.read_bytes()[:-9])
                die()

        if self.point in IN_FILES:
            files.os.replace, ExperimentWriter.save = replace_or_die, save_or_die

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.reach("batch_start", trainer)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.reach("after_backward", trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.reach("before_optimizer_step", trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.reach("batch_end", trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.reach("evaluation", trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.reach("evaluation_end", trainer)
