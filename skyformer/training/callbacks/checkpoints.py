"""The checkpoints of a run: the last one, to resume from, and the best ones, to test."""

import signal
import threading
from contextlib import suppress
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any, Literal

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from skyformer.exceptions import CheckpointError
from skyformer.files import write_atomically
from skyformer.internals import is_accumulating, is_ending_early, is_validation_due, metrics_to_log
from skyformer.model.checkpoint_io import BEST, LAST, read_checkpoint
from skyformer.training import slurm
from skyformer.training.loggers import CSVLogger

Monitor = Literal["val/accuracy", "val/loss"]


class LastCheckpoint(Checkpoint):
    """Keeps `checkpoints/last.ckpt` in the run's folder, to resume from.

    It is written at intervals of steps, before each validation, and at the end of training. After Ctrl-C or SIGTERM it
    is written at the end of the step, and the program exits with 130 or 143. A second Ctrl-C stops at once, without a
    checkpoint. In a SLURM job, SIGUSR1 does the same and queues the job again. A run that stopped during an evaluation
    resumes with this evaluation.

    Args:
        every_n_train_steps: optimiser steps between checkpoints, positive.
        every_n_minutes: minutes between checkpoints, in addition; by the first process's clock.
    """

    def __init__(self, every_n_train_steps: int = 500, every_n_minutes: float | None = None) -> None:
        if every_n_train_steps < 1:
            raise ValueError(f"last_checkpoint.every_n_train_steps={every_n_train_steps} must be at least 1")
        if every_n_minutes is not None and not every_n_minutes > 0:
            raise ValueError(f"last_checkpoint.every_n_minutes={every_n_minutes} must be above 0")
        self.every_n_train_steps = every_n_train_steps
        self.every_n_minutes = every_n_minutes
        self.signal: int | None = None
        self._saved_step = 0
        self._saved_at = monotonic()
        self._evaluation_is_due = False
        self._to_log: dict[str, float] = {}
        self._former: dict[int, Any] = {}  # signal handlers to restore; filled while training

    def state_dict(self) -> dict[str, Any]:
        return {"evaluation_is_due": self._evaluation_is_due, "to_log": self._to_log}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._evaluation_is_due = state_dict["evaluation_is_due"]
        self._to_log = state_dict["to_log"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Fix Lightning's count of epochs, which is one behind after a resume at the end of an epoch."""
        loop = checkpoint["loops"]["fit_loop"]
        epoch = int((loop["epoch_loop.batch_progress"]["total"]["ready"] - 1) // trainer.num_training_batches)
        if loop["epoch_progress"]["total"]["processed"] <= epoch:  # it is under way
            counts = {"ready": epoch + 1, "started": epoch + 1, "processed": epoch, "completed": epoch}
            loop["epoch_progress"] = {"total": counts, "current": dict(counts)}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_step = trainer.global_step
        # In place of Lightning's handler, which waits for the other processes while they wait for this one.
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT, signal.SIGTERM, *slurm.requeue_signals()]
            self._former = {number: signal.signal(number, self._receive) for number in numbers}

        for logger in trainer.loggers if trainer.is_global_zero else []:
            if isinstance(logger, CSVLogger):
                logger.start_at(trainer.global_step, self._evaluation_is_due)
        self._finish_interrupted_step(trainer)

    def _finish_interrupted_step(self, trainer: Trainer) -> None:
        """Finish the step before a resume: write its row of the log and run its evaluation."""
        for logger in trainer.loggers if self._to_log else []:
            logger.log_metrics(self._to_log, step=trainer.global_step - 1)
        self._to_log = {}
        if self._evaluation_is_due:
            # As Lightning's loop does after a step; on a resume it would take the next step.
            self._evaluation_is_due = False
            trainer.lightning_module.compile_ahead()
            evaluation = trainer.fit_loop.epoch_loop.val_loop
            evaluation.restarting = False
            trainer.validating = True
            evaluation.run()
            trainer.training = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # With accumulation, only after a step's last batch does a checkpoint hold the complete state.
        if is_accumulating(trainer):
            return
        stop = self._must_stop(trainer)
        self._evaluation_is_due = is_validation_due(trainer)
        enough = trainer.global_step - self._saved_step >= self.every_n_train_steps
        enough = enough or is_ending_early(trainer) or trainer.global_step == trainer.max_steps
        enough = enough or self._minutes_are_over(trainer)
        if stop or enough or self._evaluation_is_due:
            # The loggers get this step's numbers after the callbacks. A run killed in between would lose them.
            self._to_log = metrics_to_log(trainer)
            self._save(trainer)
        self._evaluation_is_due, self._to_log = False, {}  # a later checkpoint has this step behind it
        if stop:
            self._exit(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._former and not trainer.sanity_checking and self._must_stop(trainer):
            self._exit(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Only at an unforeseen end: a run continued from here would count its curves one step ahead.
        if trainer.global_step > self._saved_step:
            self._save(trainer)
        if self._must_stop(trainer):
            self._exit(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def _must_stop(self, trainer: Trainer) -> bool:
        """Return whether any process of the run got a signal; all processes then agree on the strongest."""
        if trainer.world_size == 1:
            return self.signal is not None  # without a number on a GPU, which would wait for it
        order: list[int | None] = [None, signal.SIGINT, signal.SIGTERM, *slurm.requeue_signals()]
        mine = torch.tensor(order.index(self.signal), device=trainer.strategy.root_device)
        self.signal = order[int(trainer.strategy.reduce(mine, reduce_op="max"))]
        return self.signal is not None

    def _minutes_are_over(self, trainer: Trainer) -> bool:
        if self.every_n_minutes is None:
            return False
        over = monotonic() - self._saved_at >= 60 * self.every_n_minutes
        return trainer.strategy.broadcast(over)  # clocks of several processes differ

    def _save(self, trainer: Trainer) -> None:
        self._saved_step = trainer.global_step
        self._saved_at = monotonic()
        for logger in trainer.loggers:
            logger.save()  # what they still hold would be lost with the process
        # "weights_only" here means: leave the optimiser and the loops out.
        trainer.save_checkpoint(f"{trainer.default_root_dir}/{LAST}", weights_only=False)

    def _exit(self, trainer: Trainer) -> None:
        number = self.signal
        assert number is not None
        path = f"{trainer.default_root_dir}/{LAST}"
        _say(f"Stopped at step {self._saved_step:,}. Resume it with --ckpt_path last. Checkpoint:\n{path}")
        if number in slurm.requeue_signals() and trainer.is_global_zero:
            _say(slurm.requeue())
        raise SystemExit(128 + number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        _say("Stopping after this step; Ctrl-C once more stops at once, unsaved.")


@rank_zero_only
def _say(text: str) -> None:
    """Print above the progress bar, which a log message would break."""
    print(text, flush=True)


class _InRunFolder(ModelCheckpoint):
    """Checkpoints with fixed names in `checkpoints/` of the run's folder, even if it moves."""

    def __init__(self, monitor: Monitor, filename: str, save_top_k: int) -> None:
        super().__init__(
            monitor=monitor, mode="min" if monitor == "val/loss" else "max", filename=filename, save_top_k=save_top_k,
            enable_version_counter=False, auto_insert_metric_name=False,
        )  # fmt: skip

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.dirpath = str(Path(trainer.default_root_dir, BEST).parent)
        super().setup(trainer, pl_module, stage)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the best scores whose files are next to the checkpoint, and copy these files to this run's folder.

        Lightning forgets scores in another folder. A score without its file would keep later files from being written.
        """
        state = checkpoint["callbacks"].pop(self.state_key, None)
        if state is None or trainer.state.fn != "fit":
            return
        assert self.dirpath is not None
        origin, here = Path(str(trainer.ckpt_path)).resolve().parent, Path(self.dirpath)
        scores = {}
        for path, score in state["best_k_models"].items():
            name = Path(path).name
            if _is_of_step(origin / name, checkpoint["global_step"]):
                scores[str(here / name)] = score
                if trainer.is_global_zero and origin != here.resolve():
                    write_atomically(here / name, (origin / name).read_bytes())
        best, worst = (max, min) if self.mode == "max" else (min, max)
        first, last = (op(scores, key=lambda path: scores[path], default="") for op in (best, worst))
        checkpoint["callbacks"][self.state_key] = {
            **state,
            "dirpath": self.dirpath,
            "best_k_models": scores,
            "best_model_path": first,
            "best_model_score": scores.get(first),
            "kth_best_model_path": last,
            "kth_value": scores.get(last, self.kth_value),
        }

    @property
    def state_key(self) -> str:
        """A key that does not depend on the settings, so that a resumed run finds its best scores."""
        return type(self).__name__


def _is_of_step(path: Path, most: int) -> bool:
    """Return whether it has at most `most` steps. A later one is from another continuation of the run."""
    with suppress(OSError, CheckpointError):
        return bool(read_checkpoint(path)["global_step"] <= most)
    return False


class BestCheckpoint(_InRunFolder):
    """Keeps `checkpoints/best.ckpt` in the run's folder, the checkpoint with the best validation metric.

    Args:
        monitor: `val/accuracy`, whose largest value is the best, or `val/loss`, whose smallest one is.
    """

    def __init__(self, monitor: Monitor = "val/accuracy") -> None:
        super().__init__(monitor, filename="best", save_top_k=1)


class TopCheckpoints(_InRunFolder):
    """Keeps `checkpoints/top-step<n>.ckpt` of the validations with the best metric, in addition to `best.ckpt`.

    Args:
        save_top_k: number of checkpoints, at least 1.
        monitor: as in `BestCheckpoint`.
    """

    def __init__(self, save_top_k: int, monitor: Monitor = "val/accuracy") -> None:
        if save_top_k < 1:
            raise ValueError(f"save_top_k={save_top_k} must be at least 1")
        super().__init__(monitor, filename="top-step{step}", save_top_k=save_top_k)
