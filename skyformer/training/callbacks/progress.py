"""One progress bar for training, in steps, and one for each evaluation."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class StepProgressBar(ProgressBar):
    """Show steps, elapsed and remaining time, and the loss. Print a permanent line after each validation of `fit`.

    Output to a file or a pipe has only these lines.
    """

    # Not `trainer.progress_bar_metrics`, for which Lightning reads the loss at every step: a GPU would wait.
    reads_callback_metrics = True

    def __init__(self) -> None:
        super().__init__()
        self.console = Console()
        self.progress: Progress | None = None
        self.tasks: dict[str, TaskID] = {}
        self.enabled = True

    def disable(self) -> None:
        """Called by Lightning on all ranks but the first."""
        self.enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = trainer.max_steps if trainer.max_steps > 0 else None
        self._begin("Training", total, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.progress is None or not self.console.is_terminal:
            return
        self.progress.update(self.tasks["Training"], completed=trainer.global_step)
        interval = trainer.log_every_n_steps  # 0 turns logging off
        is_logged = interval and trainer.global_step % interval == 0  # reading the loss makes a GPU wait
        loss = trainer.callback_metrics.get("train/loss") if is_logged else None
        if loss is not None:  # before the first step of an accumulating run there is no loss
            self.progress.update(self.tasks["Training"], text=f"loss {loss:.3f}")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._begin("Evaluating", int(sum(trainer.num_val_batches)))

    def on_validation_batch_end(self, *_: Any) -> None:
        self._advance("Evaluating")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._end("Evaluating")
        metrics = trainer.callback_metrics
        loss, accuracy = float(metrics["val/loss"]), float(metrics["val/accuracy"])
        if self.enabled and trainer.state.fn == "fit":
            step = f"step {trainer.global_step:>7,}"
            self.console.print(
                f"{step}   validation loss {loss:.4f}   validation accuracy {accuracy:.2%}", highlight=False
            )

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("Testing", int(sum(trainer.num_test_batches)))

    def on_test_batch_end(self, *_: Any) -> None:
        self._advance("Testing")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("Predicting", int(sum(trainer.num_predict_batches)))

    def on_predict_batch_end(self, *_: Any) -> None:
        self._advance("Predicting")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()

    def on_exception(self, *_: Any) -> None:
        self._stop()

    def _begin(self, name: str, total: int | None, completed: int = 0) -> None:
        if not self.enabled:
            return
        if self.progress is None:
            self.progress = _make_progress(self.console)
            if self.console.is_terminal:
                self.progress.start()
        self.tasks[name] = self.progress.add_task(name, total=total, completed=completed, text="")

    def _advance(self, name: str) -> None:
        if self.progress is not None:
            self.progress.advance(self.tasks[name])

    def _end(self, name: str) -> None:
        if self.progress is not None:
            self.progress.remove_task(self.tasks.pop(name))

    def _stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()
        self.progress, self.tasks = None, {}


def _make_progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("<"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=console,
        expand=True,
        transient=True,  # finished work has lines that stay
    )
