"""Random numbers of a training step as a pure function of (seed, epoch, batch, rank)."""

import os
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer


class StepSeed(Callback):
    """Seed torch before every training step, so that dropout and landmark draws do not depend on earlier steps.

    A resumed run then draws the same numbers as an uninterrupted one, without a generator state in the checkpoint. Each
    rank draws different numbers.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        seed_step(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # An evaluation that draws random numbers repeats after a resume too.
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            seed_step(trainer)


def seed_step(trainer: Trainer, taken: int | None = None) -> None:
    """Seed torch for the current batch, or for the batch after `taken` batches."""
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
    # torch.manual_seed also seeds unused devices, and takes longer than the launch of a CUDA graph.
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(number)


def batches_taken(trainer: Trainer) -> int:
    """Return the number of training batches before the current one.

    Lightning's count of epochs can be wrong after a resume."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1
