"""Curves of the curriculum, and a notice if training has not left chance."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from skyformer.training.callbacks.label_counts import LabelCounter, pretrains

PAGE = "docs/plateau.md"


class PlateauNotice(LabelCounter):
    """Print a notice if the validation accuracy is still at chance after a tenth of the steps; not in pretraining.

    Chance is the fraction of the most frequent label. Accuracy has left it if any evaluation so far is two standard
    errors above it.
    """

    def __init__(self) -> None:
        self.has_left = False
        self.is_said = False

    def state_dict(self) -> dict[str, Any]:
        return {"has_left": self.has_left, "is_said": self.is_said}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.has_left, self.is_said = state_dict["has_left"], state_dict["is_said"]

    def counts_in(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        trial = trainer.sanity_checking or trainer.fast_dev_run or trainer.state.fn != "fit"
        return not (trial or pretrains(pl_module) or self.has_left or self.is_said)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.counts_in(trainer, pl_module):
            return
        labels, chance = self.labels.total_and_chance(trainer)
        accuracy, step, steps = float(trainer.callback_metrics["val/accuracy"]), trainer.global_step, trainer.max_steps
        self.has_left = accuracy > chance + 2 * (chance * (1 - chance) / labels) ** 0.5
        if self.has_left or steps <= 0 or step < steps / 10 or _is_in_an_easier_stage(trainer):
            return
        self.is_said = True
        hint = getattr(trainer.datamodule, "plateau", "")
        rank_zero_info(
            f"Validation accuracy is still at chance after {step:,} of {steps:,} steps ({accuracy:.2%}; always "
            f"guessing the most frequent label gives {chance:.2%}). {hint + ' ' if hint else ''}See {PAGE}."
        )


def _is_in_an_easier_stage(trainer: Trainer) -> bool:
    """Return whether training still uses easier examples than the evaluation."""
    stages = getattr(trainer.datamodule, "stages", [])
    return bool(stages) and trainer.datamodule.stage_at(trainer.global_step)[0] < len(stages)


class CurriculumCurve(Callback):
    """Log `train/stage`, the number of the stage of a step, and print a line when it changes.

    Without easier stages, log nothing.
    """

    def __init__(self) -> None:
        self.stage: int | None = None
        self.value = torch.zeros(())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not getattr(trainer.datamodule, "stages", None):
            return
        stage, name = trainer.datamodule.stage_at(trainer.global_step)
        if self.stage not in (None, stage):
            rank_zero_info(f"step {trainer.global_step:>7,}   training continues with {name}")
        if self.stage != stage:
            self.stage = stage
            self.value = torch.tensor(float(stage), device=pl_module.device)  # once: a copy to a GPU waits
        pl_module.log("train/stage", self.value)
