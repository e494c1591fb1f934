"""Check what jsonargparse accepts but a run cannot use or must not execute."""

import inspect
import json
import math
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonargparse
import yaml
from jsonargparse import Namespace
from lightning import Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from skyformer.attention import Attention
from skyformer.exceptions import RunError
from skyformer.installation import program_name
from skyformer.internals import start_method
from skyformer.yaml_text import load_yaml

_SECTIONS = (
    "trainer", "model", "data", "last_checkpoint", "best_checkpoint", "non_finite_loss", "predictions",
    "data.init_args", "data.init_args.protocol",
)  # fmt: skip
# Settings without which a run cannot be resumed.
_NEEDED = {"trainer.enable_checkpointing": True, "trainer.barebones": False}
_BASES = {"model.attention": Attention, "model.optimizer": Optimizer, "model.lr_scheduler": LRScheduler}


def check_files(arguments: Sequence[str]) -> None:
    """Check the files that `--config` names for errors that the parser reports badly.

    Raises:
        RunError: for a file that is not UTF-8 or names other files, or a file below configs/ that does not exist.
    """
    for name in config_files(arguments):
        try:
            content = load_yaml(Path(name).expanduser().read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise RunError(f"--config {name} is not UTF-8 text (byte {error.start}). Fix: save it as UTF-8") from error
        except FileNotFoundError as error:
            if Path(name).parts[0] == "configs":
                raise RunError(
                    f"--config {name}: neither this folder nor the package has that file. Fix: name one that "
                    f"`{program_name()} configs` lists"
                ) from error
            continue
        except (OSError, ValueError, yaml.YAMLError):
            continue
        _check_former_settings(name, content)
        if isinstance(content, dict) and "config" in content and not isinstance(content["config"], list | None):
            raise RunError(f"--config {name}: the key config has no place in a file. Fix: name each file with --config")


def _check_former_settings(name: str, content: Any) -> None:
    """Name the replacement of a setting of an earlier version."""
    best = content.get("best_checkpoint") if isinstance(content, dict) else None
    if isinstance(best, dict) and "mode" in best:
        raise RunError(
            f"--config {name}: best_checkpoint.mode follows from best_checkpoint.monitor now. Fix: remove the line"
        )
    protocol: Any = content
    for key in ("data", "init_args", "protocol"):
        protocol = protocol.get(key) if isinstance(protocol, dict) else None
    if isinstance(protocol, dict) and "zero_is_padding" in protocol:
        value = str(protocol["zero_is_padding"]).lower()
        raise RunError(
            f"--config {name}: data.protocol.zero_is_padding is now data.drop_black. Fix: remove it and add "
            f"--data.init_args.drop_black {value} (image tasks only)"
        )


def config_files(arguments: Sequence[str]) -> Iterator[str]:
    """Return the values of `--config` and `-c`, in the order of the arguments."""
    for before, argument in pairwise(["", *arguments]):
        if before in ("--config", "-c"):
            yield argument
        elif argument.startswith("--config="):
            yield argument.removeprefix("--config=")
        elif argument.startswith("-c") and argument != "-c":
            yield argument.removeprefix("-c").removeprefix("=")


def check_nulls(parser: jsonargparse.ArgumentParser, config: Namespace) -> None:
    """Refuse null where the type does not allow it. jsonargparse alone treats it as a missing argument.

    Raises:
        SystemExit: 2, naming the key.
    """
    jsonargparse.set_parsing_settings(unset_sentinel=True)
    try:
        parser.validate(config)
    except TypeError as error:
        parser.error(str(error), error)
    finally:
        jsonargparse.set_parsing_settings(unset_sentinel=False)


def check_config(config: Namespace) -> None:
    """Refuse a value in place of a section, numbers beyond 64 bits, and functions in place of classes.

    jsonargparse would call any function that a class path of the model names, even `os.system`.

    Raises:
        RunError: naming the key and its value.
    """
    for key in _SECTIONS:
        if key in config and not isinstance(config[key], Namespace | dict):
            raise RunError(f"{key}={config[key]!r}: this takes keys with values of their own")
    for key, value in config.items():
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, int) and abs(number) >= 2**63:
                raise RunError(f"{key}={number} has more than 64 bits. Fix: use a smaller number")
            if isinstance(number, float) and not math.isfinite(number):
                raise RunError(f"{key}={number} must be finite")
    for key, base in _BASES.items():
        _check_class(key, config.get(key), base)
    for key, needed in _NEEDED.items():
        if config.get(key) is not None and config[key] != needed:
            raise RunError(f"{key}={json.dumps(config[key])}: a run writes checkpoints and a log. Fix: leave it out")


def _check_class(key: str, given: Any, base: type) -> None:
    if given is None:
        return
    named = given["class_path"] if isinstance(given, Namespace) else f"{given.__module__}.{given.__qualname__}"
    module, _, name = named.rpartition(".")
    made = getattr(import_module(module), name)
    if not (inspect.isclass(made) and issubclass(made, base)) or made is base:
        raise RunError(f"{key}={named}: this must be a class below {base.__module__}.{base.__qualname__}")


# Callbacks of Lightning that a run cannot use, with the reason and the fix.
_REFUSED = {
    LearningRateFinder: (
        "a search must not change a run's settings",
        "set model.optimizer.init_args.lr, or compare several values with a sweep",
    ),
    BatchSizeFinder: (
        "a search must not change a run's settings",
        "set data.init_args.batch_size, or compare several values with a sweep",
    ),
    GradientAccumulationScheduler: (
        "a step has the same number of batches in every epoch, which the schedule and a resume go by",
        "set trainer.accumulate_grad_batches",
    ),
    BaseFinetuning: (
        "a resumed run would freeze again what it had unfrozen, and processes would not share those gradients",
        "freeze in the setup of a callback of your own; --model.init_from continues with all parameters in another run",
    ),
    StochasticWeightAveraging: (
        "it replaces the schedule, and no checkpoint holds its average",
        "add --config configs/trainer/ema.yaml",
    ),
}


def check_trainer(trainer: Trainer) -> None:
    """Refuse options of Lightning that a run cannot use, because all of its settings are in its `config.yaml`.

    Raises:
        RunError: naming the key.
    """
    for callback in trainer.callbacks:
        for refused, (why, fix) in _REFUSED.items():
            if isinstance(callback, refused):
                raise RunError(f"trainer.callbacks: {why} (got {type(callback).__name__}). Fix: remove it and {fix}")
    if (method := start_method(trainer)) is not None:
        raise RunError(
            "trainer.strategy: a run cannot be handed to spawned or forked processes (got start method "
            f"{method}). Fix: --trainer.strategy ddp, in a terminal and not in a notebook"
        )


def trainer_settings(given: Namespace, why: str) -> str:
    """Return the trainer's settings that are not defaults. If the error's text names some, return only these."""
    defaults = inspect.signature(Trainer).parameters
    changed = {
        key: value for key, value in given.as_dict().items() if key in defaults and value != defaults[key].default
    }
    named = {key: value for key, value in changed.items() if key in why or (len(str(value)) > 2 and str(value) in why)}
    return ", ".join(f"trainer.{key}={value!r}"[:200] for key, value in (named or changed).items())
