"""Random numbers of a training step as a pure function of (seed, epoch, batch, rank)."""

import os
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer


class StepSeed(Callback):
    """Seeds torch before every training step, so that dropout and landmark draws do not depend on what ran before.

    A resumed run then draws what an uninterrupted one draws, without any generator's state in the checkpoint, and
    each rank draws its own.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        seed_step(trainer)


def seed_step(trainer: Trainer, taken: int | None = None) -> None:
    """Seed torch for the batch under way, or for the one before which `taken` batches were taken."""
    seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
    if taken is None:
        taken = batches_taken(trainer)
    # A loader without a length has infinitely many batches: then all are of epoch 0.
    epoch, batch = map(int, divmod(taken, trainer.num_training_batches))
    sequence = np.random.SeedSequence([seed, epoch, batch, trainer.global_rank])
    number = int(sequence.generate_state(1, np.uint64)[0])
    device = trainer.strategy.root_device
    if device.type not in ("cpu", "cuda"):
        torch.manual_seed(number)
        return
    # torch.manual_seed also seeds devices that do not compute here, and takes longer than to launch a CUDA graph.
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(number)


def batches_taken(trainer: Trainer) -> int:
    """Training batches before the one under way; Lightning's count of epochs is not always right after a resume."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1
