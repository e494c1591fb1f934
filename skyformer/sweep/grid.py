"""A sweep's grid and its cells: one cell for each task, backend, variant and seed."""

import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from skyformer.exceptions import RunError
from skyformer.files import write_atomically
from skyformer.installation import CONFIGS, ROOT, find_overlay, python_arguments
from skyformer.sweep.job import threads_of
from skyformer.yaml_text import load_yaml

Arguments = dict[str, Any]
# What the sweep itself gives to each run.
_TAKEN = ("seed_everything", "trainer.default_root_dir", "ckpt_path", "config", "test_after_fit")
_KEYS = ("tasks", "backends", "seeds", "configs", "arguments", "overrides")
_NAME = re.compile(r"[\w.+=-]+")


@dataclass(frozen=True)
class Axis:
    """One value of an axis of the grid.

    Attributes:
        name: its part of the run's folder name.
        path: its YAML file; None for an override.
        arguments: dotted keys and values, for its runs only.
    """

    name: str
    path: Path | None
    arguments: Arguments


@dataclass(frozen=True)
class Grid:
    """The contents of a grid file; `overrides` may be empty."""

    tasks: list[Axis]
    backends: list[Axis]
    seeds: list[int]
    configs: list[Path]
    arguments: Arguments
    overrides: list[Axis]


def read_grid(path: Path) -> Grid:
    """Read a grid file.

    Raises:
        RunError: for a wrong file, key, name or value, with the fix.
    """
    content = read_mapping(path, "--grid")
    unknown = [key for key in content if key not in _KEYS]
    if unknown:
        raise RunError(f"{path}: unknown key {', '.join(map(str, unknown))}. A grid has: {', '.join(_KEYS)}")
    missing = [key for key in ("tasks", "backends", "seeds") if not content.get(key)]
    if missing:
        raise RunError(f"{path}: {', '.join(missing)} must be given, each with one value or more")
    return Grid(
        tasks=_axis(path, "tasks", content["tasks"], ""),
        backends=_axis(path, "backends", content["backends"], "attention"),
        seeds=_seeds(path, content["seeds"]),
        configs=[_find(path, "configs", named, "") for named in _names(path, "configs", content.get("configs") or [])],
        arguments=_arguments(path, "arguments", content.get("arguments")),
        overrides=_axis(path, "overrides", content.get("overrides") or {}, None),
    )


def read_mapping(path: Path, why: str) -> dict[Any, Any]:
    """The keys and values of a YAML file.

    Raises:
        RunError: for an invalid file; `why` says what named it.
    """
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{why}: there is no file {path}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError(f"{why}: {path} is not YAML in UTF-8 ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise RunError(f"{why}: {path} must hold keys with values")
    return content


def _axis(path: Path, key: str, given: Any, folder: str | None) -> list[Axis]:
    """Names, or names with arguments of their own; `folder`: of their files below configs/, None without files."""
    if folder is None and not isinstance(given, dict):
        raise RunError(f"{path}: {key} must be names with arguments, such as deep: {{model.num_layers: 4}}")
    values = []
    for named in _names(path, key, given):
        file = None if folder is None else _find(path, key, named, folder)
        arguments = _arguments(path, f"{key}.{named}", given[named] if isinstance(given, dict) else None)
        values.append(Axis(file.stem if file else named, file, arguments))
    names = [value.name for value in values]
    for name in names:
        if not _NAME.fullmatch(name) or name in (".", ".."):
            raise RunError(
                f"{path}: {key}: a name is also a folder's (got {name!r}). Fix: letters, digits and any of . _ + = -"
            )
        if names.count(name) > 1:
            raise RunError(
                f"{path}: {key}: two have the same name, so their runs would share a folder (got {name}). "
                "Fix: rename a file"
            )
    return values


def _names(path: Path, key: str, given: Any) -> list[str]:
    if not isinstance(given, list | dict) or not all(isinstance(name, str) for name in given):
        raise RunError(f"{path}: {key}={given!r} must be a list of names, or names with arguments")
    return list(given)


def _find(path: Path, key: str, named: str, folder: str) -> Path:
    """The file of a name: below configs/, or a path, as the user would type it here."""
    return from_here(find_overlay(named, CONFIGS / folder, f"{path}: {key}"))


def from_here(path: Path) -> Path:
    """The path relative to the working directory where it lies below that, else as it is."""
    full = Path(os.path.abspath(path))
    return full.relative_to(Path.cwd()) if full.is_relative_to(Path.cwd()) else full


def _arguments(path: Path, key: str, given: Any) -> Arguments:
    given = {} if given is None else given
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise RunError(f"{path}: {key}={given!r} must be arguments with values, such as trainer.max_steps: 40")
    for name in given:
        if name in _TAKEN:
            raise RunError(f"{path}: {key}: {name} is set by the sweep for each run. Fix: leave it out")
    return dict(given)


def _seeds(path: Path, given: Any) -> list[int]:
    valid = isinstance(given, list) and all(type(seed) is int and 0 <= seed < 2**32 for seed in given)
    if not valid or len(set(given)) < len(given):
        raise RunError(f"{path}: seeds={given!r} must be different integers below 2**32, such as [0, 1, 2]")
    return given


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        task, backend, override, seed: its place in the grid; an empty override where the grid has none.
        runs: the sweep's folder.
        configured: arguments of `fit` without those that depend on the seed.
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
        """The part of the name that all seeds share."""
        return self.task, self.backend, self.override

    @property
    def folder(self) -> Path:
        return self.runs / self.name

    @property
    def fit(self) -> tuple[str, ...]:
        """Arguments that start the run, or continue it."""
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
    """Return the files of a run, in order; later files win.

    A backend with the task's own class comes before `configs`. Otherwise it would undo their settings of the class,
    such as those of protocol/paper. A backend of another class comes after them, because it has no such arguments.
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
    """Merge arguments; later ones win. A value may have two spellings or be part of another, so the order is kept."""
    merged: Arguments = {}
    for layer in layers:
        for key, value in layer.items():
            merged.pop(key, None)
            merged[key] = value
    return merged


def _written(arguments: Arguments) -> Iterable[str]:
    return (f"--{key}={_value(value)}" for key, value in arguments.items())


def _value(value: Any) -> str:
    """Format a value for the command line, with quotes for text that parses as another type."""
    return value if isinstance(value, str) and load_yaml(value) == value else json.dumps(value)


def write_commands(cell: Cell, threads: int) -> None:
    """Write the sweep's commands into `commands.sh` in the run's folder, for manual use."""
    program = ["python", *python_arguments(from_here(ROOT / "run.py"))]
    lines = [shlex.join([*program, *part]) for part in (cell.fit, cell.test)]
    text = "\n".join(
        [
            "# Trains and tests this run as the sweep does: bash commands.sh",
            f"cd {shlex.quote(os.getcwd())} && export OMP_NUM_THREADS={threads_of(cell.folder, threads)} || exit",
            " &&\n".join(lines),
        ]
    )
    write_atomically(cell.folder / "commands.sh", text + "\n")
