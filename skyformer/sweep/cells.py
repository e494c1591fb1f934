"""The runs of a grid, each with the commands that make it."""

import json
import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skyformer.files import write_whole
from skyformer.installation import ROOT, python_arguments
from skyformer.runs import RunError
from skyformer.sweep.attempts import threads_of
from skyformer.sweep.grid import Arguments, Axis, Grid, from_here, read_mapping
from skyformer.yaml_text import load_yaml


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        task, backend, override, seed: its place in the grid; an empty override where the grid has none.
        runs: the sweep's folder.
        configured: arguments of `fit` but for those in which the seeds of one configuration differ.
    """

    task: str
    backend: str
    override: str
    seed: int
    runs: Path
    configured: tuple[str, ...]

    @property
    def name(self) -> str:
        """`listops/skyformer/seed0`, with the override before the seed."""
        return "/".join(filter(None, (*self.kind, f"seed{self.seed}")))

    @property
    def kind(self) -> tuple[str, str, str]:
        """What its other seeds have in common."""
        return self.task, self.backend, self.override

    @property
    def folder(self) -> Path:
        return self.runs / self.name

    @property
    def fit(self) -> tuple[str, ...]:
        """Arguments that start the run, or go on with it."""
        own = (f"--seed_everything={self.seed}", f"--trainer.default_root_dir={self.folder}")
        return ("fit", *self.configured, *own, "--test_after_fit=false", "--ckpt_path=auto")

    @property
    def test(self) -> tuple[str, ...]:
        """Arguments that test its best checkpoint, wherever its folder has moved."""
        return ("test", f"--config={self.folder}/config.yaml", f"--trainer.default_root_dir={self.folder}")


def cells_of(grid: Grid, runs: Path) -> list[Cell]:
    """All runs of a grid, the seeds of a configuration after one another.

    Raises:
        RunError: for a file of a backend that names none.
    """
    cells = []
    for task in grid.tasks:
        for backend in grid.backends:
            files = [f"--config={path}" for path in _files(task, grid.configs, backend)]
            for override in grid.overrides or [Axis("", None, {})]:
                layers = (grid.arguments, task.arguments, backend.arguments, override.arguments)
                configured = (*files, *_written(_merged(layers)))
                cells += [Cell(task.name, backend.name, override.name, seed, runs, configured) for seed in grid.seeds]
    return cells


def _files(task: Axis, configs: list[Path], backend: Axis) -> list[Path]:
    """The files of a run in the order in which they count, later ones more.

    A backend of the class that the task has already comes before `configs`, else it would undo what these say of it,
    as protocol/paper does; one of another class comes after them, since it has no such arguments.
    """
    assert task.path is not None
    assert backend.path is not None
    own = _attention_class(backend.path)
    if own is None:
        raise RunError(f"{backend.path} names no model.attention.class_path, as a backend must")
    if own == _attention_class(task.path):
        return [task.path, backend.path, *configs]
    return [task.path, *configs, backend.path]


def _attention_class(path: Path) -> str | None:
    """The class's name, without the modules before it."""
    try:
        return str(read_mapping(path, "--grid")["model"]["attention"]["class_path"]).rpartition(".")[2]
    except (KeyError, TypeError):
        return None


def _merged(layers: Iterable[Arguments]) -> Arguments:
    """Arguments of which later ones count more, in that order: a value may have two spellings, or be part of another,
    and the parser takes what comes last.
    """
    merged: Arguments = {}
    for layer in layers:
        for key, value in layer.items():
            merged.pop(key, None)
            merged[key] = value
    return merged


def _written(arguments: Arguments) -> Iterable[str]:
    return (f"--{key}={_value(value)}" for key, value in arguments.items())


def _value(value: Any) -> str:
    """As on the command line, where a text that reads as something else needs quotes."""
    return value if isinstance(value, str) and load_yaml(value) == value else json.dumps(value)


def write_commands(cell: Cell, threads: int) -> None:
    """Write `commands.sh` into the run's folder: what the sweep does there, for a user's own hands."""
    program = ["python", *python_arguments(from_here(ROOT / "run.py"))]
    lines = [shlex.join([*program, *part]) for part in (cell.fit, cell.test)]
    text = "\n".join(
        [
            "# Trains and tests this run as the sweep does: bash commands.sh",
            f"cd {shlex.quote(os.getcwd())} && export OMP_NUM_THREADS={threads_of(cell.folder, threads)} || exit",
            " &&\n".join(lines),
        ]
    )
    write_whole(cell.folder / "commands.sh", text + "\n")
