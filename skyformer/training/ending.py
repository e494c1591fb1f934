"""Why a run ended before its last step."""

from dataclasses import asdict, dataclass
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer


@dataclass(frozen=True)
class EarlyEnd:
    """The end of a run before its last step, without a failure.

    Attributes:
        step: optimiser steps that it took.
        max_steps: largest number of steps of the run; -1 without a limit.
        reason: a sentence without its full stop.
    """

    step: int
    max_steps: int
    reason: str

    def __str__(self) -> str:
        of = f" of {self.max_steps:,}" if self.max_steps > 0 else ""
        return f"Stopped early at step {self.step:,}{of}: {self.reason}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def early_end(trainer: Trainer) -> EarlyEnd | None:
    """Return how training ended early; None if it took all of its steps."""
    step, most = trainer.global_step, trainer.max_steps
    if step >= most > 0 or (most <= 0 and not trainer.should_stop):
        return None
    return EarlyEnd(step, most, _reason(trainer))


def _reason(trainer: Trainer) -> str:
    if not trainer.should_stop:
        return f"trainer.max_epochs={trainer.max_epochs} was reached"
    for callback in trainer.callbacks:
        if isinstance(callback, Timer) and (left := callback.time_remaining()) is not None and left <= 0:
            return f"{type(callback).__name__}, the time for training is over"
        if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
            said = callback.stopping_reason_message.removesuffix("Signaling Trainer to stop.").strip(" .")
            return f"{type(callback).__name__}, {said[0].lower()}{said[1:]}"
    return "a callback asked for it"
