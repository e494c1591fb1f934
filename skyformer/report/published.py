"""Tables 1 and 2 of Chen, Zeng, Ji, Yang, *Skyformer*, NeurIPS 2021 (arXiv 2111.00035), and how they were made."""

from collections.abc import Mapping
from typing import Any

from skyformer.report.settings import format_value, without_arguments

TASKS = {  # in the order of its tables; Path-X is not in them
    "text": "Text",
    "listops": "ListOps",
    "retrieval": "Retrieval",
    "pathfinder": "Pathfinder",
    "image": "Image",
}
OTHER_TASKS = {"reviewpairs": "Review pairs (not AAN)", "mqar": "MQAR"}  # not of Long Range Arena: in no average
_NAMES = {**TASKS, "pathx": "Path-X", **OTHER_TASKS}

# Table 1: accuracy in %, in the order of TASKS.
_ACCURACY = {
    "softmax": (61.95, 38.37, 80.69, 65.26, 40.57),
    "kernelized": (60.22, 38.78, 81.77, 70.73, 41.29),
    "nystromformer": (64.83, 38.51, 80.52, 69.48, 41.30),
    "linformer": (58.93, 37.45, 78.19, 60.93, 37.96),
    "informer": (62.64, 32.53, 77.57, 57.83, 38.10),
    "performer": (64.19, 38.02, 80.04, 66.30, 41.43),
    "reformer": (62.93, 37.68, 78.99, 66.49, 48.87),
    "bigbird": (63.86, 39.25, 80.28, 68.72, 43.16),
    "skyformer": (64.70, 38.69, 82.06, 70.73, 40.77),
}
AVERAGE = {  # the last column of Table 1
    "softmax": 57.37,
    "kernelized": 58.56,
    "nystromformer": 58.93,
    "linformer": 54.69,
    "informer": 53.73,
    "performer": 58.00,
    "reformer": 58.99,
    "bigbird": 59.05,
    "skyformer": 59.39,
}
# Table 2: hours for 50,000 steps on one V100, and peak memory in GB.
_HOURS_AND_GB = {
    "softmax": ((4.30, 10.37), (2.24, 5.37), (8.33, 10.77), (2.57, 5.74), (4.22, 11.47)),
    "kernelized": ((3.91, 5.73), (1.99, 5.94), (7.46, 10.46), (2.42, 6.38), (4.05, 6.38)),
    "nystromformer": ((0.71, 1.21), (0.71, 1.37), (1.29, 2.39), (1.49, 3.35), (2.70, 6.71)),
    "linformer": ((0.65, 0.99), (0.60, 0.99), (1.13, 1.89), (1.09, 1.97), (2.19, 3.94)),
    "informer": ((1.60, 5.12), (1.19, 4.85), (2.91, 5.77), (2.39, 4.75), (3.90, 9.51)),
    "performer": ((0.77, 1.09), (0.73, 1.09), (1.41, 2.16), (1.40, 2.20), (2.55, 4.39)),
    "reformer": ((0.94, 1.61), (0.85, 1.61), (1.73, 2.98), (1.70, 3.21), (3.08, 6.42)),
    "bigbird": ((2.00, 2.83), (1.88, 2.71), (3.81, 4.97), (3.39, 4.97), (6.53, 9.95)),
    "skyformer": ((1.02, 1.59), (1.29, 1.75), (1.86, 3.15), (2.03, 4.13), (3.40, 8.26)),
}

STEPS = 50_000
# How its numbers were made, by the paper (§5) and its released code.
_MODEL = {
    "model.num_layers": 2,
    "model.embed_dim": 64,
    "model.hidden_dim": 128,
    "model.num_heads": 2,
    "model.pooling": "padded_mean",
    "model.dropout": 0.1,
    "model.optimizer.class_path": "torch.optim.AdamW",
    "model.optimizer.init_args.eps": 1e-6,
    "model.optimizer.init_args.weight_decay": 0.0,
    "model.lr_scheduler.class_path": "skyformer.model.schedule.LinearOneCycle",
}
_DATA = "data.init_args.protocol."
_EVERY_TASK = {"trainer.max_steps": STEPS, _DATA + "pad_to_max_length": True, _DATA + "drop_last_test": True}
_WARMUP, _LR = "model.lr_scheduler.init_args.warmup_steps", "model.optimizer.init_args.lr"
_DROP_BLACK = "data.init_args.drop_black"
LEVELS = "data.init_args.level_schedule"
# Settings that equal the paper's if a configuration does not name them.
_STARTS_AND_DATA: dict[str, Any] = {
    "model.positions_lr_factor": 1.0,
    "model.positions": "learned",
    "model.position_init": "normal",
    "model.norm": "layer",
    "model.feed_forward": "gelu",
    "model.stochastic_depth": 0.0,
    "model.query_key_gain": None,
    "model.init_from": None,
    "model.mlm_weight": 0.0,
    "model.class_weights": None,
    "model.label_smoothing": 0.0,
    "data.init_args.augment": False,
}
_TASK: dict[str, dict[str, Any]] = {
    "text": {"batch": 16, _LR: 1e-4, _WARMUP: 80, _DATA + "val_is_test": True, _DATA + "document_bytes": 4000},
    "listops": {"batch": 32, _LR: 1e-4, _WARMUP: 1000, _DATA + "brackets": False},
    "retrieval": {"batch": 16, _LR: 2e-4, _WARMUP: 800, _DATA + "document_bytes": 4000},
    "pathfinder": {"batch": 128, _LR: 2e-4, _WARMUP: 312, _DROP_BLACK: True},
    "image": {"batch": 256, _LR: 1e-4, _WARMUP: 175, _DROP_BLACK: True},
}
# The paper's text says 16, the configuration of its released code 32: either is its own.
_ALSO: dict[str, dict[str, Any]] = {"text": {"batch": 32}}
SOURCE = "data.init_args.source"
_RELEASED = ("listops", "pathfinder")  # drawn here where no source is named; the paper's data is LRA's release
_SIZES: dict[str, dict[str, Any]] = {
    "listops": {"min_length": 500, "max_length": 2000, "train_size": 96_000, "test_size": 2000},
    "pathfinder": {"resolution": 32, "level": "hard", "train_size": 160_000, "test_size": 20_000},
}
_CHOSEN_ON_A_PART = ("text", "listops", "retrieval", "pathfinder")  # Image's validation set was evaluated whole
_ATTENTION = "model.attention.init_args."
_METHOD: dict[str, dict[str, Any]] = {
    "skyformer": {"num_landmarks": 128, "solver": "newton_schulz", "landmark_draw": "half_and_half"}
    | {"eval_landmarks": "fresh"},
    "nystromformer": {"num_landmarks": 128},
    "linformer": {"projected_length": 128},
    "informer": {"num_queries": 128},
    "performer": {"num_features": 128},
}


def task_name_of(task: str) -> str:
    """How a task is written: `ListOps`; one that is not of the benchmark as it is."""
    return _NAMES.get(task, task)


def task_place(task: str) -> tuple[int, str]:
    """To sort by: the published order, then the rest by name."""
    names = list(_NAMES)
    return (names.index(task) if task in names else len(names), task)


def accuracy(backend: str, task: str) -> float | None:
    """The accuracy in %, if the paper has it."""
    return dict(zip(TASKS, _ACCURACY.get(backend, ()), strict=False)).get(task)


def hours_and_gb(backend: str, task: str) -> tuple[float, float] | None:
    """Hours for 50,000 steps on a V100 and GB of its memory, if the paper has them."""
    return dict(zip(TASKS, _HOURS_AND_GB.get(backend, ()), strict=False)).get(task)


def conditions(backend: str, task: str) -> dict[str, Any]:
    """The settings behind a number of the paper, by the keys of `report.settings`; empty where it has no number."""
    if accuracy(backend, task) is None:
        return {}
    method = {_ATTENTION + name: value for name, value in _METHOD.get(backend, {}).items()}
    val_size = {_DATA + "published_val_size": True} if task in _CHOSEN_ON_A_PART else {}
    return {**_EVERY_TASK, **_TASK[task], **val_size, **_MODEL, **method}


def departures(backend: str, task: str, settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys in which settings are not the paper's, with both values: ours, the paper's.

    Args:
        backend, task: those of the run. A pair without a published number has no departures.
        settings: those of `report.settings`, and `SOURCE`, the folder that the data was read from.
    """
    expected, also = conditions(backend, task), _ALSO.get(task, {})
    if not expected:
        return {}
    usual = {f"data.init_args.{name}": value for name, value in _SIZES.get(task, {}).items()}
    usual |= _STARTS_AND_DATA | {key: None for key in settings if key.startswith(LEVELS)}
    # A configuration that does not name one of these has the paper's value.
    expected |= {key: value for key, value in usual.items() if key in settings}
    said = {key: format_value(settings.get(key)) for key in expected}
    unlike = [
        key
        for key, value in expected.items()
        if said[key] not in (format_value(value), format_value(also.get(key, value)))
    ]
    apart = {key: (settings.get(key), expected[key]) for key in without_arguments(unlike)}
    if task in _RELEASED and settings.get(SOURCE) is None:
        apart["data"] = ("drawn here", "LRA's release")
    return apart
