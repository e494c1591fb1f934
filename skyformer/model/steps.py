"""The number of training steps of a run."""

from lightning import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from skyformer.exceptions import RunError
from skyformer.internals import train_dataloader


def set_steps(trainer: Trainer) -> None:
    """Give a run whose length is set in epochs its number of steps, for the schedule and the callbacks.

    The smaller of `max_steps` and `max_epochs` counts. A loader without a length leaves `max_steps` as it is.

    Raises:
        RunError: if an epoch is shorter than the interval between evaluations, or than the batches of an accumulated
            step. Lightning cannot do either.
    """
    if trainer.fast_dev_run:
        return
    by_epochs = trainer.max_epochs is not None and trainer.max_epochs >= 0
    within_epochs = trainer.check_val_every_n_epoch is not None and trainer.limit_val_batches > 0
    accumulated = trainer.accumulate_grad_batches
    batches = _batches_an_epoch(trainer) if by_epochs or within_epochs or accumulated > 1 else 0
    if batches == 0:
        return
    if accumulated > batches:
        raise RunError(
            f"trainer.accumulate_grad_batches={accumulated} must be at most the {batches:,} batches of an epoch, since "
            "a step ends with its epoch. Fix: lower it"
        )
    interval = trainer.val_check_interval
    if within_epochs and isinstance(interval, int) and interval > batches:
        raise RunError(
            f"trainer.val_check_interval={interval} must be at most the {batches:,} batches of an epoch where "
            f"trainer.check_val_every_n_epoch={trainer.check_val_every_n_epoch}. Fix: --trainer.val_check_interval 1.0 "
            "to evaluate at the end of epochs, or --trainer.check_val_every_n_epoch null"
        )
    if by_epochs:
        steps = trainer.max_epochs * -(-batches // accumulated)
        if not 0 < trainer.max_steps <= steps:
            trainer.fit_loop.epoch_loop.max_steps = steps
            rank_zero_info(f"trainer.max_epochs={trainer.max_epochs}: {steps:,} steps")


def _batches_an_epoch(trainer: Trainer) -> int:
    """Batches that each epoch takes, before Lightning's loop counts them; 0 where that is not known."""
    try:
        # Lightning's own `estimated_stepping_batches` would begin an epoch, before a resumed run knows its place.
        batches = len(train_dataloader(trainer))
    except TypeError:
        return 0
    limit = trainer.limit_train_batches
    return min(limit, batches) if isinstance(limit, int) else int(limit * batches)
