"""Every key of every command, found in its parser, with each hostile value."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import fuzz_values
import tiny_runs

import skyformer.attention
from skyformer import prepare
from skyformer.benchmark import command as benchmark_command
from skyformer.cli import SkyformerCLI
from skyformer.report import command as report_command

TRAINING = ("fit", "validate", "test", "predict")
BACKENDS = list(skyformer.attention.BACKENDS)


class Case(NamedTuple):
    """A command, and what its user set.

    Attributes:
        base: its arguments that are right.
        key: that which is set; empty for a whole file.
        label: of the value.
        change: the argument that sets it, or the contents of a file that does.
    """

    base: tuple[str, ...]
    key: str
    label: str
    change: str | bytes

    @property
    def group(self) -> str:
        parts = self.key.split(".")
        named = ".".join(parts[: 3 if "init_args" in parts[1:3] else 2][: max(1, len(parts) - 1)])
        return f"{self.base[0]} {named if self.key else 'whole files'}".strip()


class _Parsed(SkyformerCLI):
    """Stops after the arguments are parsed."""

    def _set_seed(self) -> None: ...
    def before_instantiate_classes(self) -> None: ...
    def instantiate_classes(self) -> None: ...
    def _run_subcommand(self, subcommand: str) -> None: ...


@cache
def keys_of(base: tuple[str, ...]) -> list[str]:
    """All keys of a command with this configuration: leaves, sections, and arguments that print something."""
    command = base[0]
    if command in TRAINING:
        cli = _Parsed(list(base))
        parser, config = cli._parser(command), cli.config[command]
    else:
        commands = {"prepare": prepare, "report": report_command, "benchmark": benchmark_command}
        parser = commands[command]._parser()
        config = parser.parse_args(list(base[1:]))
    keys = dict.fromkeys(action.dest for action in parser._actions)
    for key in config.keys():  # noqa: SIM118  a namespace's own iterator gives its sections alone
        keys.update(dict.fromkeys(key[:end] for end, sign in enumerate(f"{key}.") if sign == "."))
    return sorted(keys)


def cases_of(base: Iterable[str], values: Iterable[str], only: str = "", besides: Iterable[str] = ()) -> Iterator[Case]:
    """Each key that begins with `only`, each value, as an argument and in a file."""
    base = tuple(base)
    for key in keys_of(base):
        if not key.startswith(only) or key in besides:
            continue
        fetched = key == "data.init_args.source" and any(".source=" in argument for argument in base)
        for label in values:
            value = fuzz_values.VALUES[label]
            if fetched and label == "null":
                continue  # for these tasks it means to download
            yield Case(base, key, label, f"--{key}={value}")
            if values is fuzz_values.VALUES and label in fuzz_values.IN_FILES and "--config" in base[1]:
                yield Case(base, key, f"{label} in a file", fuzz_values.in_a_file(key, value).encode())
        yield Case(base, f"{key}.nonsense", "unknown", f"--{key}.nonsense=1")


def all_cases(base_of: Callable[..., list[str]]) -> Iterator[Case]:
    """All there are.

    Args:
        base_of: arguments that work, of a command and a task.
    """
    for command in ("fit", "prepare"):
        base = tuple(base_of(command))
        yield from (Case(base, "", label, content) for label, content in fuzz_values.FILES.items())
        with tempfile.TemporaryDirectory() as folder:
            for label, name in fuzz_values.write_places(Path(folder)).items():
                yield Case(base, "config", label, f"--config={name.replace(folder, '<places>')}")
    yield from cases_of(base_of("fit"), fuzz_values.VALUES)
    for backend in BACKENDS:
        base = [*base_of("fit"), f"--config={tiny_runs.ROOT}/configs/attention/{backend}.yaml"]
        yield from cases_of(base, fuzz_values.VALUES, "model.attention.init_args")
    for command in ("report", "benchmark"):
        yield from cases_of(base_of(command), fuzz_values.VALUES)
    known = keys_of(tuple(base_of("prepare")))
    for task in tiny_runs.TINY_DATA:
        tried = () if task == "listops" else {*known} - {"data.init_args.source"}
        yield from cases_of(base_of("prepare", task), fuzz_values.VALUES, "data", tried)
    yield from cases_of(base_of("prepare"), fuzz_values.FEW)
    for command in TRAINING[1:]:
        yield from cases_of(base_of(command), fuzz_values.FEW)
