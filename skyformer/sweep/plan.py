"""Parse each run's configuration before it starts, and check that its folder holds the same run."""

import io
import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import yaml

from skyformer.cli import SkyformerCLI
from skyformer.exceptions import RunError
from skyformer.model.checkpoint_io import BEST, LAST, PREVIOUS
from skyformer.model.earlier_versions import upgrade_config
from skyformer.sweep.grid import Cell
from skyformer.training.config_checks import check_config, check_files
from skyformer.training.run_folder import FREE_ON_RESUME, flatten
from skyformer.yaml_text import load_dumped

# Settings that a continued run may change, but a run of this grid may not, because results depend on them.
_COUNTS = ("non_finite_loss", "trainer.callbacks", "trainer.check_val", "trainer.limit_",
           "trainer.max_", "trainer.min_", "trainer.val_check_interval")  # fmt: skip
_DIFFER = ("config", "trainer.default_root_dir")  # in any two runs
Config = dict[str, Any]


class _Parser(SkyformerCLI):
    """Parse the arguments of `fit`, and stop there."""

    def parse(self, args: Sequence[str]) -> Config:
        self.parse_arguments(self.parser, list(args))
        check_config(self.config[self.config.subcommand])
        return self._plain_config()

    def _set_seed(self) -> None:
        pass

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def plan(cells: Sequence[Cell]) -> dict[Cell, Config]:
    """Return the full configuration of each run. Its command line is parsed as in `fit`, once for all seeds.

    Raises:
        RunError: for an argument that `fit` would refuse, or two runs that are one, naming them.
    """
    plans: dict[tuple[str, str, str], Config] = {}
    parser = None
    for cell in cells:
        if cell.kind in plans:
            continue
        check_files(cell.fit)
        said = io.StringIO()
        try:
            with redirect_stderr(said), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "LightningCLI's args parameter")
                parser = parser or _Parser(list(cell.fit))
                plans[cell.kind] = parser.parse(cell.fit)
        except (SystemExit, RunError) as error:
            raise RunError(f"{cell.name}: {_reason(said.getvalue()) or error}") from error
        _check_devices(cell, plans[cell.kind])
    _check_different(plans)
    return {cell: {**plans[cell.kind], "seed_everything": cell.seed} for cell in cells}


def _check_devices(cell: Cell, config: Config) -> None:
    """Refuse GPUs by their numbers: a run sees only those that it is given, numbered from 0."""
    devices = config["trainer"]["devices"]
    if isinstance(devices, list) or "," in str(devices):
        raise RunError(
            f"{cell.name}: trainer.devices={devices} names GPUs, but the sweep chooses them. Fix: set how many"
        )


def _check_different(plans: Mapping[tuple[str, str, str], Config]) -> None:
    """Refuse two runs with the same configuration."""
    first: dict[str, str] = {}
    for kind, config in plans.items():
        name = "/".join(filter(None, kind))
        flat = {key: value for key, value in flatten(config).items() if key not in _DIFFER}
        same = first.setdefault(json.dumps(flat, sort_keys=True, default=str), name)
        if same != name:
            fix = "Fix: leave one out, or set what differs in its arguments, which count more than any file."
            raise RunError(f"{same} and {name} are the same run twice: nothing in their configurations differs. {fix}")


def _reason(said: str) -> str:
    """Return the parser's message without its usage."""
    return " ".join(said.rpartition("error:")[2].split())


def check_folders(plans: Mapping[Cell, Config]) -> None:
    """Refuse a folder that holds a run with another configuration. A longer run may continue it.

    Raises:
        RunError: naming each folder and key with both values.
    """
    lines = [f"  {cell.name}: {change}" for cell, config in plans.items() for change in _changes(cell.folder, config)]
    if lines:
        shown = [*lines[:20], *([f"  and {len(lines) - 20} more"] if len(lines) > 20 else [])]
        fix = "Fix: set them as they were, or name another folder with --runs; finished runs are not written over."
        raise RunError("\n".join(["these runs were made with another configuration:", *shown, fix]))


def _changes(folder: Path, now: Config) -> list[str]:
    if not any((folder / name).exists() for name in (LAST, PREVIOUS, BEST)):
        return []  # nothing was trained there
    path = folder / "config.yaml"
    try:
        before = flatten(upgrade_config(load_dumped(path.read_text(encoding="utf-8"))))
        here = flatten(now)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        return [f"{path} cannot be read ({' '.join(str(error).split())})"]
    longer = _is_longer(before.get("trainer.max_steps"), here["trainer.max_steps"])
    return [
        f"{key}: {before.get(key)!r} in {path}, {here.get(key)!r} now"
        for key in sorted(before.keys() | here.keys())
        if before.get(key) != here.get(key)
        and not (key.startswith(FREE_ON_RESUME) and not key.startswith(_COUNTS))
        and not (key == "trainer.max_steps" and longer)
    ]


def _is_longer(before: Any, now: Any) -> bool:
    """Return whether a limit of `now` steps continues a run of `before` steps; -1 is no limit."""
    return isinstance(before, int) and 0 < before < now
