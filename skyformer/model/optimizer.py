"""The optimiser and its schedule, from the factories of a configuration."""

from collections.abc import Callable, Iterable
from math import isclose
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import Adam, AdamW, Optimizer, SparseAdam
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from skyformer.model.schedule import SchedulerFactory, make_schedule

OptimizerFactory = Callable[[Iterable], Optimizer]


def make_optimizer_and_scheduler(
    optimizer_factory: OptimizerFactory,
    scheduler_factory: SchedulerFactory | None,
    model: nn.Module,
    steps: int | None,
    positions_lr_factor: float = 1.0,
    prefers_fused: bool = False,
) -> tuple[Optimizer, LRScheduler | None]:
    """Make an optimiser and a schedule for the parameters of a model.

    Args:
        optimizer_factory: makes the optimiser from parameters or groups of them.
        scheduler_factory: makes the schedule from the optimiser; None for a constant rate.
        model: with `encoder.positions` if `positions_lr_factor` is not 1.
        steps: training steps of the run; -1 for no limit, None where they are not known yet.
        positions_lr_factor: learning rate of learned positions as a multiple of the optimiser's.
        prefers_fused: whether to use the fused form of Adam and AdamW (`fused`).

    Raises:
        MisconfigurationException: for an invalid value, naming the key.
    """
    key = "model.optimizer"
    try:
        optimizer = optimizer_factory(_parameter_groups(model, positions_lr_factor))
        if isinstance(optimizer, SparseAdam):
            raise ValueError("SparseAdam takes sparse gradients only. Fix: set torch.optim.Adam")
        if prefers_fused:
            optimizer = fused(optimizer)
        if positions_lr_factor != 1:
            optimizer.param_groups[-1]["lr"] *= positions_lr_factor
        key = "model.lr_scheduler"
        scheduler = scheduler_factory and make_schedule(scheduler_factory, optimizer, steps)
        if isinstance(scheduler, ReduceLROnPlateau) and monitored(scheduler) not in ("val/loss", "val/accuracy"):
            raise ValueError(f"monitor={monitored(scheduler)!r} must be val/loss or val/accuracy")
        rate, positions_rate = (optimizer.param_groups[group]["lr"] for group in (0, -1))
        if positions_lr_factor != 1 and not isclose(positions_rate, rate * positions_lr_factor):
            raise ValueError(
                f"{type(scheduler).__name__} sets every rate itself, so that "
                f"model.positions_lr_factor={positions_lr_factor} has no effect. Fix: set it to 1"
            )
        return optimizer, scheduler
    except (KeyError, NotImplementedError, TypeError, ValueError) as error:
        raise MisconfigurationException(f"{key}: {str(error) or type(error).__name__}") from error


def _parameter_groups(model: nn.Module, positions_lr_factor: float) -> Iterable:
    """Return one group, or a second one for the position embedding."""
    if positions_lr_factor == 1:
        return model.parameters()
    positions = model.get_parameter("encoder.positions.weight")
    others = [parameter for parameter in model.parameters() if parameter is not positions]
    return [{"params": others}, {"params": [positions]}]


def fused(optimizer: Optimizer) -> Optimizer:
    """Return a fused version of torch's Adam or AdamW unless another form is set.

    torch itself takes a slower form by default.
    """
    group = optimizer.param_groups[0]
    chosen = group.get("fused") is not None or group.get("foreach") is not None or group.get("differentiable")
    if type(optimizer) not in (Adam, AdamW) or chosen:
        return optimizer
    made: Any = type(optimizer)
    with_kernel = made([{**group, "fused": True} for group in optimizer.param_groups], fused=True)
    with_kernel.defaults = {**optimizer.defaults, "fused": True}  # of groups that are added later
    return with_kernel


def monitored(scheduler: ReduceLROnPlateau) -> str:
    """Return the metric of a plateau schedule. torch's class does not name it, but its `mode` tells which one."""
    return getattr(scheduler, "monitor", "val/loss" if scheduler.mode == "min" else "val/accuracy")
