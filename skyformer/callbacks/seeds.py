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


def seed_step(trainer: Trainer) -> None:
    """Seed torch for the batch under way."""
    seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
    # By the number of batches taken: Lightning's count of epochs is not always right after a resume.
    taken = trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1
    # A loader without a length has infinitely many batches: then all are of epoch 0.
    epoch, batch = map(int, divmod(taken, trainer.num_training_batches))
    sequence = np.random.SeedSequence([seed, epoch, batch, trainer.global_rank])
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
