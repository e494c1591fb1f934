"""Check the settings of callbacks on a resume."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.utilities.model_helpers import is_overridden

from skyformer.exceptions import RunError
from skyformer.training.overlays import as_list
from skyformer.training.run_folder import flatten

Config = Mapping[str, Any]
# They only decide when a run ends, so a new value may apply from the resume on, like a new trainer.max_steps.
_TAKE_NEW_SETTINGS = (EarlyStopping, Timer)


def check_callback_settings(trainer: Trainer, checkpoint: dict[str, Any], before: Config, now: Config) -> None:
    """Accept new settings of callbacks, or refuse them if the checkpoint restores a state made with the former ones.

    Args:
        trainer: with the callbacks of this run.
        checkpoint: its contents; callbacks have not read their states yet. Changed in place.
        before, now: nested configurations of the checkpoint and of this run.

    Raises:
        RunError: naming each setting with both values.
    """
    states = checkpoint["callbacks"]
    lines = []
    for callback, former, given in _pairs(trainer, before, now):
        if isinstance(callback, _TAKE_NEW_SETTINGS):
            if isinstance(callback, EarlyStopping) and callback.state_key in states:
                states[callback.state_key]["patience"] = callback.patience  # Lightning restores this setting
        elif callback.state_key in states or is_overridden("on_load_checkpoint", callback, Callback):
            name = type(callback).__name__
            lines += [
                f"  {name} {key.removeprefix('init_args.')}: {former[key]!r} in the checkpoint, {value!r} now"
                for key, value in given.items()
                if key in former and former[key] != value  # a later version may have more keys
            ]
    if lines:
        fix = "Fix: set them as they were, or leave the callback out, or start another run without --ckpt_path."
        raise RunError("\n".join(["trainer.callbacks: the checkpoint's state depends on other settings:", *lines, fix]))


def _pairs(trainer: Trainer, before: Config, now: Config) -> Iterator[tuple[Callback, dict[str, Any], dict[str, Any]]]:
    """Pair each callback with its former and its current settings; callbacks of one class are matched in order."""
    former, given = _by_class(before), _by_class(now)
    for callback in trainer.callbacks:
        name = type(callback).__name__
        if former[name] and given[name]:
            yield callback, former[name].pop(0), given[name].pop(0)


def _by_class(config: Config) -> dict[str, list[dict[str, Any]]]:
    settings = defaultdict(list)
    for callback in as_list(config["trainer"].get("callbacks")):
        settings[str(callback["class_path"]).rpartition(".")[2]].append(flatten(callback))
    return settings
