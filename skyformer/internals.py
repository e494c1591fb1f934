"""One function for each private part of Lightning, torch and jsonargparse that this project uses.

`tests/project/test_internals.py` fails when an upgrade changes one of them. Overrides of private methods are in the
subclasses that need them: `cli.SkyformerCLI`, `training/loggers.py` and `attention.Attention`.
"""

from argparse import Action, ArgumentParser
from collections.abc import Mapping
from typing import Any

import torch
import torch._functorch.config
from lightning import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch import Tensor, nn
from torch.optim import Optimizer

_FASTEST_CLOCK = 3e9  # cycles per second, more than a GPU reaches


def is_accumulating(trainer: Trainer) -> bool:
    """Return whether the batch under way leaves its gradients to a later batch, so that it ends no step."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def is_validation_due(trainer: Trainer) -> bool:
    """Return whether a validation follows the batch under way."""
    return trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher)


def is_ending_early(trainer: Trainer) -> bool:
    """Return whether training ends after the batch under way, since a callback has asked for it."""
    return trainer.should_stop and trainer.fit_loop._can_stop_early


def metrics_to_log(trainer: Trainer) -> dict[str, float]:
    """Return what the loggers get after the batch under way; empty where it is no logged step."""
    connector = trainer._logger_connector
    metrics = connector.metrics["log"] if connector.should_update_logs else {}
    return {name: float(value) for name, value in metrics.items()}


def step_of_metrics(trainer: Trainer) -> int:
    """Return the step by which Lightning logs the metrics of a validation."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def train_dataloader(trainer: Trainer) -> Any:
    """Return a new loader of the training data, before the loop has one."""
    return trainer.fit_loop._data_source.dataloader()


def train_even_if_done(trainer: Trainer) -> None:
    """Let `fit` start and end training even if no step is left, which Lightning skips."""
    former = trainer.fit_loop
    trainer.fit_loop = _UnskippedFitLoop(trainer, former.min_epochs, former.max_epochs)
    trainer.fit_loop.epoch_loop = former.epoch_loop


class _UnskippedFitLoop(_FitLoop):
    skip = False


def cluster_environment(trainer: Trainer) -> Any:
    """Return Lightning's cluster environment: that of SLURM, torchrun, or its own."""
    return trainer._accelerator_connector.cluster_environment


def start_method(trainer: Trainer) -> str | None:
    """Return how the strategy starts processes from this one, `spawn` or `fork`; None where it does not."""
    launcher = trainer.strategy.launcher
    return launcher._start_method if isinstance(launcher, _MultiProcessingLauncher) else None


def average_model(callback: WeightAveraging) -> Any:
    """Return the averaged model of this callback; None before training."""
    return callback._average_model


def forget_average(trainer: Trainer) -> None:
    """Let a test load the averaged weights of a checkpoint. After a `fit` the callback would load the current ones."""
    for callback in trainer.callbacks:
        if isinstance(callback, WeightAveraging):
            callback._average_model = None


def is_compiled(module: nn.Module) -> bool:
    """Return whether `module.compile()` was called."""
    return module._compiled_call_impl is not None


def keep_precision_of_compiled_gradients() -> None:
    """Compile backward passes without autocast, as Lightning runs them."""
    # An older torch has no such setting.
    if hasattr(torch._functorch.config, "backward_pass_autocast"):
        torch._functorch.config.backward_pass_autocast = "off"


def is_compiler_error(error: Exception) -> bool:
    """Return whether `torch.compile` itself failed."""
    return type(error).__module__ in ("torch._dynamo.exc", "torch._inductor.exc")


def scales_itself(optimizer: Optimizer) -> bool:
    """Return whether the optimiser takes the loss scale and skips a step by itself, as torch's fused ones do."""
    return getattr(optimizer, "_step_supports_amp_scaling", False)


def copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy tensors into others, on a GPU by one launch for many."""
    torch._foreach_copy_(targets, sources)


def hold_gpu(seconds: float) -> None:
    """Keep the current CUDA stream busy for at least this time; later work is queued behind it."""
    torch.cuda._sleep(int(seconds * _FASTEST_CLOCK))


def actions_of(parser: ArgumentParser) -> list[Action]:
    """Return the arguments of a parser."""
    return parser._actions


def describe_subcommands(parser: ArgumentParser, texts: Mapping[str, str]) -> None:
    """Set the line of each subcommand in the parser's help."""
    for action in parser._actions:
        for shown in getattr(action, "_choices_actions", ()):
            shown.help = texts.get(shown.dest, shown.help)


def replace_type(action: Action, type_hint: Any) -> None:
    """Give an argument another type, if its own equals that one; Python takes `int | float` for `float | int`."""
    if getattr(action, "_typehint", None) == type_hint:
        action._typehint = type_hint  # type: ignore[attr-defined]
