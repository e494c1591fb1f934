"""Differences between a checkout and an installed package: paths of the configurations, and the command's name."""

import shlex
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from jsonargparse import ArgumentParser

from skyformer.exceptions import RunError

_PACKAGE = Path(__file__).parent
IS_CHECKOUT = not (_PACKAGE / "configs").is_dir()  # the wheel holds them inside the package
ROOT = _PACKAGE.parent  # of a checkout
CONFIGS = (ROOT if IS_CHECKOUT else _PACKAGE) / "configs"
_OPTIONS = ("--config", "-c", "--grid")


def find_config(named: str) -> str:
    """Return the path of a YAML file: `configs/…` is a shipped one where the working directory has no such file."""
    path = Path(named)
    if path.parts[:1] == ("configs",) and not path.exists():
        shipped = CONFIGS.joinpath(*path.parts[1:])
        if shipped.is_file():
            return str(shipped)
    return named


def find_overlay(named: str, folder: Path, why: str) -> Path:
    """Return the path of an overlay, from its name below `folder` or the path of a YAML file.

    Raises:
        RunError: where it does not exist; `why` says who named it.
    """
    is_path = named.endswith((".yaml", ".yml"))
    path = Path(find_config(named)).expanduser() if is_path else folder / f"{named}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(str(found.relative_to(folder).with_suffix("")) for found in folder.rglob("*.yaml")))
        raise RunError(f"{why}: no file {path} (got {named}). Fix: one of {known}, or the path of a YAML file")
    return path


def with_shipped_configs(arguments: Sequence[str]) -> list[str]:
    """Replace what `--config`, `-c` and `--grid` name by what `find_config` finds."""
    found = []
    for before, argument in pairwise(["", *arguments]):
        option, equals, named = argument.partition("=")
        if before in _OPTIONS:
            found.append(find_config(argument))
        elif equals and option in _OPTIONS:
            found.append(f"{option}={find_config(named)}")
        else:
            found.append(argument)
    return found


def run_configs(args: list[str]) -> None:
    """List the shipped configurations by the names that `--config` and `--grid` take.

    Args:
        args: arguments after `configs`.

    Raises:
        SystemExit: 2 for a wrong argument.
    """
    description = "List the shipped configurations. Each file starts with the command that runs it."
    command_parser("configs", description).parse_args(args)
    for path in sorted(CONFIGS.rglob("*.yaml")):
        print("configs", *path.relative_to(CONFIGS).parts, sep="/")
    print(f"They are in {CONFIGS}. A file of the same name in the working directory comes first.")


def program(script: str) -> list[str]:
    """Return the words that start a command line, from the `sys.argv[0]` of such a command."""
    return ["python", script] if Path(script).name == "run.py" else ["skyformer"]


def command_line(words: Sequence[str]) -> str:
    """Return what to type for a command, from its `sys.argv`; empty for no words."""
    return shlex.join([*program(words[0]), *words[1:]]) if words else ""


def program_name() -> str:
    """Return what the user typed to start this program: `python run.py` or `skyformer`."""
    return " ".join(program(sys.argv[0]))


def command_parser(command: str, description: str) -> ArgumentParser:
    """Return the parser of a command such as `sweep`, without arguments. It takes no abbreviated ones."""
    return ArgumentParser(prog=f"{program_name()} {command}", description=description, allow_abbrev=False)


def python_arguments(script: Path = ROOT / "run.py") -> list[str]:
    """Return what `python` takes to start this program in another process.

    Args:
        script: path of a checkout's `run.py`, as it should be written.
    """
    return [str(script)] if IS_CHECKOUT else ["-m", "skyformer"]
