"""Tiny versions of the shipped tasks, as arguments of the command line."""

from pathlib import Path
from typing import Any

import tiny_sources

HELPERS = Path(__file__).parent
ROOT = HELPERS.parents[1]

TINY_DATA: dict[str, dict[str, Any]] = {
    "image": {"val_size": 20, "batch_size": 4},
    "listops": {"min_length": 8, "max_length": 64, "train_size": 100, "val_size": 21, "test_size": 13, "batch_size": 8},
    "mqar": {
        "vocab_size": 16,
        "train_cases": [[16, 2], [20, 4]],
        "test_cases": [[16, 3], [32, 6]],
        "train_size": 100,
        "val_size": 21,
        "test_size": 13,
        "batch_size": 8,
    },
    "pathfinder": {"train_size": 44, "val_size": 10, "test_size": 7, "batch_size": 4},
    "pathx": {"train_size": 4, "val_size": 1, "test_size": 1, "batch_size": 1},
    "retrieval": {"max_bytes": 60, "batch_size": 4},
    "reviewpairs": {"max_bytes": 60, "val_size": 8, "batch_size": 4},
    "text": {"max_bytes": 60, "val_size": 10, "batch_size": 4},
}
TINY_TRAINER = {
    "max_steps": 9,
    "val_check_interval": 3,
    "log_every_n_steps": 1,
    "accelerator": "cpu",
    "logger": "skyformer.training.loggers.CSVLogger",
}
TINY_MODEL = {"embed_dim": 16, "hidden_dim": 16, "lr_scheduler.init_args.warmup_steps": 2}

# Stops after `patience` validations, since no accuracy rises by 2.
EARLY = "--trainer.callbacks+=EarlyStopping"
NEVER_BETTER = [EARLY, "--trainer.callbacks.monitor=val/accuracy", "--trainer.callbacks.mode=max"]
NEVER_BETTER += ["--trainer.callbacks.min_delta=2"]


def build_arguments(data_dir: Path, task: str, folder: Path, *overlays: str) -> list[str]:
    """Arguments of a shipped task's configuration, with overlays such as `trainer/bf16`, made tiny."""
    data = {**TINY_DATA[task], "data_dir": data_dir}
    if task in tiny_sources.WRITERS:
        data["source"] = data_dir / "sources" / task
    return [
        *(f"--config={ROOT}/configs/{name}.yaml" for name in (task, *overlays)),
        *(f"--data.init_args.{key}={value}" for key, value in data.items()),
        *(f"--model.{key}={value}" for key, value in TINY_MODEL.items()),
        *(f"--trainer.{key}={value}" for key, value in TINY_TRAINER.items()),
        f"--trainer.default_root_dir={folder}",
    ]
