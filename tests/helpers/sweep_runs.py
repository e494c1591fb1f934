"""A small grid, and the command line of a sweep of it."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import TINY_DATA, TINY_MODEL

SMALL = {"tasks": ["listops"], "backends": ["skyformer"], "seeds": [0]}
RESULT = '{"test/accuracy": 0.25, "checkpoint": "runs/checkpoints/best.ckpt"}'


def write_grid(folder: Path, **keys: Any) -> Path:
    """The path of a grid file with these keys in place of those of `SMALL`."""
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **keys}))
    return path


def sweep(grid: Path, runs: Path, *more: str) -> list[str]:
    return ["sweep", f"--grid={grid}", f"--runs={runs}", "--executor=local", *more]


def stopped_with(main, arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return stopped.value.code


def tiny_grid(data_dir: Path, **trainer) -> dict:
    """Arguments that make a run of ListOps tiny, as `tiny_arguments` does."""
    settings = {"max_steps": 3, "val_check_interval": 3, "log_every_n_steps": 1, "accelerator": "cpu", **trainer}
    return {
        "data.data_dir": str(data_dir),
        **{f"data.{key}": value for key, value in TINY_DATA["listops"].items()},
        **{f"model.{key}": value for key, value in TINY_MODEL.items()},
        **{f"trainer.{key}": value for key, value in settings.items()},
    }
