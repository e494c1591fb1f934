"""End an evaluation on SIGTERM."""

import signal
import threading
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer


class StopEvaluationOnSigterm(Callback):
    """End all processes of `test`, `validate` and `predict` at once on SIGTERM, with status 143.

    Lightning's own handler broadcasts from within the signal, which hangs while the other processes reduce metrics.
    `predict` ignores its flag.
    """

    def __init__(self) -> None:
        self._former: Any = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":  # LastCheckpoint handles it there
            self._listen(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._former is not None:
            signal.signal(signal.SIGTERM, self._former)
            self._former = None

    def _listen(self, trainer: Trainer) -> None:
        def leave(number: int, frame: FrameType | None) -> None:
            launcher = trainer.strategy.launcher
            if launcher is not None and hasattr(launcher, "kill"):
                launcher.kill(signal.SIGTERM)
            raise SystemExit(128 + number)

        if threading.current_thread() is threading.main_thread():
            self._former = signal.signal(signal.SIGTERM, leave)
