"""Learning-rate schedules: that of the paper's experiments, and the length of any over the run."""

import inspect
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jsonargparse
from lightning.pytorch.cli import LightningArgumentParser
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LambdaLR, LRScheduler, OneCycleLR, SequentialLR

SchedulerFactory = Callable[[Optimizer], LRScheduler]
# Arguments of torch's schedules, and of this project's, that mean the number of steps until the end.
STEP_ARGUMENTS = ("total_steps", "T_max", "total_iters")


class LinearOneCycle(LambdaLR):
    """Linear warm-up to the optimiser's rate, then linear decay to zero; one call of `step()` per training step.

    torch's `OneCycleLR` also cycles β₁ and keeps the number of steps it was made with, so a run could not be extended.

    Args:
        optimizer: its `lr` is the peak.
        total_steps: length of the run, positive. From a configuration, -1 (the default) means the run's own.
        warmup_steps: steps before the peak, fewer than `total_steps`.

    Raises:
        ValueError: for numbers of steps that do not go together.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int = -1, warmup_steps: int = 0) -> None:
        if total_steps < 1:
            raise ValueError(f"total_steps={total_steps} must be at least 1")
        if not 0 <= warmup_steps < total_steps:
            raise ValueError(
                f"warmup_steps={warmup_steps} must be at least 0 and below total_steps={total_steps}, by default the "
                "steps of the run. Fix: set --model.lr_scheduler.warmup_steps, --trainer.max_steps or "
                "--trainer.max_epochs"
            )

        def factor(step: int) -> float:
            if step < warmup_steps:
                return (step + 1) / (warmup_steps + 1)
            return max(0.0, (total_steps - step) / (total_steps - warmup_steps))

        super().__init__(optimizer, factor)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the count of steps; the next step's rate is this schedule's, also where it is longer than before."""
        super().load_state_dict(state_dict)
        groups = zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True)
        for group, base, factor in groups:
            group["lr"] = base * factor(self.last_epoch)


def step_argument(made: Callable[..., Any]) -> str | None:
    """The name of the argument that takes the number of steps; None for a class without one."""
    return next((name for name in STEP_ARGUMENTS if name in inspect.signature(made).parameters), None)


def make_schedule(factory: SchedulerFactory, optimizer: Optimizer, steps: int | None) -> LRScheduler:
    """Make the schedule, over the whole run if it has a length that was not set.

    Args:
        factory: a class, a `partial` of one, or a function. Its argument `total_steps`, `T_max` or `total_iters` is set
            to `steps` if it is None or -1.
        optimizer: the optimiser whose rates it sets.
        steps: training steps of the run; -1 for no limit, None where they are not known yet.

    Raises:
        ValueError: for a length that makes no sense.
    """
    made: Callable[..., Any] = factory
    given: dict[str, Any] = {}
    while isinstance(made, partial):
        given = {**made.keywords, **given}
        # jsonargparse binds the class as the argument of a function that makes it.
        made = made.args[-1] if made.args and inspect.isclass(made.args[-1]) else made.func
    name = step_argument(made)
    length = given.get(name or "")
    lengths: dict[str, Any] = {}
    if name and length in (None, -1) and given.get("epochs") is None:  # OneCycleLR's epochs × steps_per_epoch
        if steps is not None and steps < 1:
            raise ValueError(
                f"this schedule goes by the number of steps of the run (got {steps}). Fix: set --trainer.max_steps, "
                f"--trainer.max_epochs or --model.lr_scheduler.init_args.{name}"
            )
        lengths = {name: sys.maxsize if steps is None else steps}
    elif length is not None and length < 1:
        raise ValueError(f"{name}={length} must be at least 1, or -1 for the length of the run")
    schedule = factory(optimizer, **lengths)
    if isinstance(schedule, OneCycleLR) and steps is not None and not 0 < steps <= schedule.total_steps:
        raise ValueError(
            f"OneCycleLR ends after {schedule.total_steps:,} steps, the run after {steps:,}. Fix: leave out "
            "total_steps, epochs and steps_per_epoch"
        )
    return schedule


class ScheduleArguments(jsonargparse.ArgumentParser):
    """A parser in which the length of a schedule may be left out: -1 then, the length of the run."""

    def add_class_arguments(self, class_type: type, *args: Any, **kwargs: Any) -> list[str]:
        if not (inspect.isclass(class_type) and issubclass(class_type, LRScheduler)):
            return super().add_class_arguments(class_type, *args, **kwargs)
        if issubclass(class_type, SequentialLR | ChainedScheduler):
            # jsonargparse names the class in the same message.
            raise ValueError(
                "this class takes schedules that exist already, which a configuration cannot make. Fix: name one "
                "schedule, such as skyformer.model.schedule.LinearOneCycle, or a class of your own"
            )
        name = step_argument(class_type)
        if name is None:
            return super().add_class_arguments(class_type, *args, **kwargs)
        added = super().add_class_arguments(class_type, *args, **{**kwargs, "skip": {*kwargs.get("skip", ()), name}})
        self.add_argument(f"--{name}", type=int | None, default=-1, help="Training steps; -1: those of the run.")
        return [*added, name]


class TrainingParser(ScheduleArguments, LightningArgumentParser):
    """That of `fit`, `validate`, `test` and `predict`."""
