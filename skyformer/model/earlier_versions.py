"""Upgrade configurations that an earlier version wrote."""

import inspect
import sys
from copy import deepcopy
from typing import Any

from skyformer.model.schedule import step_argument

_IMAGE_TASKS = ("Image", "Pathfinder", "PathX")
_MODEL = {
    "positions": "learned",
    "position_init": "normal",
    "query_key_gain": None,
    "norm": "layer",
    "feed_forward": "gelu",
    "stochastic_depth": 0.0,
    "class_weights": None,
    "label_smoothing": 0.0,
    "objective": "classify",
    "mask_ratio": 0.15,
    "mlm_weight": 0.0,
}
_TASKS = (*_IMAGE_TASKS, "ListOps", "Text", "Retrieval")


def upgrade_config(config: dict[str, Any]) -> dict[str, Any]:
    """A run's nested configuration with the settings that its version lacked, at the values that do what it did.

    A configuration of this version comes back as it is, and so does what is not of a task of this project.
    """
    if not isinstance(config, dict) or not all(isinstance(config.get(name), dict) for name in ("data", "model")):
        return config
    config = deepcopy(config)
    module, _, name = str(config["data"].get("class_path")).rpartition(".")
    is_ours = module.partition(".")[0] in ("", "datamodules")  # a user's class may have the same name
    arguments = config["data"].get("init_args")
    config["model"] = {**_MODEL, **config["model"]}
    if isinstance(config.get("best_checkpoint"), dict):
        config["best_checkpoint"].pop("mode", None)  # follows from the metric
    _set_steps(config["model"].get("lr_scheduler"))
    if is_ours and name in _TASKS and isinstance(arguments, dict):
        protocol = arguments.get("protocol")
        former = protocol.pop("zero_is_padding", None) if isinstance(protocol, dict) else None
        if name in _IMAGE_TASKS:
            arguments.setdefault("drop_black", bool(former))
        if name in ("Pathfinder", "PathX"):
            arguments.setdefault("level_schedule", None)
        arguments.setdefault("augment", False)
    return config


def _set_steps(schedule: Any) -> None:
    """Every schedule went by the length of the run, which no configuration named."""
    if not isinstance(schedule, dict):
        return
    module, _, name = str(schedule.get("class_path")).rpartition(".")
    # Only where it is imported already: a checkpoint from a stranger must not import modules.
    made = getattr(sys.modules.get(module), name, None)
    length = step_argument(made) if inspect.isclass(made) else None
    arguments = schedule.setdefault("init_args", {})
    if length and isinstance(arguments, dict):
        arguments.setdefault(length, -1)
