"""Tested runs as lines of JSON, by the schema in `run.schema.json`: written from folders, and read from anywhere."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from skyformer.exceptions import RunError
from skyformer.report.runs import DamagedConfigError, Run, usable_config
from skyformer.training.record import portable_record
from skyformer.training.run_folder import is_pretraining, task_name

SCHEMA: dict[str, Any] = json.loads(Path(__file__).with_name("run.schema.json").read_text(encoding="utf-8"))
VERSION = SCHEMA["properties"]["schema"]["const"]


@dataclass(frozen=True, eq=False)
class ListedRun(Run):
    """A run that is known from its line alone. It has no curves; `folder` is the file and the line's number."""

    line: dict[str, Any]

    @cached_property
    def steps(self) -> int:
        return int(self.line["steps"])

    @property
    def hours(self) -> float:
        return _number(self.line["hours"])

    @property
    def peak_memory_gb(self) -> float:
        return _number(self.line["memory_gb"])

    @property
    def best_validation(self) -> float:
        return _number(self.line["validation_accuracy"])


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def lines_of(runs: Iterable[Run]) -> dict[Run, dict[str, Any]]:
    """Return a line for each tested run whose origin is recorded, under unique names."""
    lines: dict[Run, dict[str, Any]] = {}
    names: Counter[str] = Counter()
    for run in runs:
        if run.accuracy is not None and run.records:
            line = _line_of(run)
            names[line["name"]] += 1
            number = names[line["name"]]  # of runs with this name, such as repeats of one
            lines[run] = line if number == 1 else {**line, "name": f"{line['name']}-{number}"}
    return lines


def to_jsonl(lines: Iterable[Mapping[str, Any]]) -> str:
    """Return the contents of a `.jsonl` file."""
    return "".join(json.dumps(line) + "\n" for line in lines)


def _line_of(run: Run) -> dict[str, Any]:
    """Return a tested run's line as a dict, by `SCHEMA`."""
    if isinstance(run, ListedRun):
        return run.line
    config, result = _portable_config(run.config), run.result or {}
    starts = [portable_record(record) for record in run.records]
    header = _header(config, starts)
    return {
        "schema": VERSION,
        "name": f"{run.task}-{run.backend}-{header['config_hash'][:8]}",
        **header,
        "steps": run.steps,
        "hours": _json_number(run.hours),
        "memory_gb": _json_number(run.peak_memory_gb),
        "test_accuracy": result["test/accuracy"],
        "test_examples": result.get("test/examples"),
        "validation_accuracy": _json_number(run.best_validation),
        "checkpoint_sha256": result.get("checkpoint_sha256"),
        "source": "record",
        "starts": starts,
        "config": config,
    }


def _json_number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _header(config: Mapping[str, Any], starts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fields that follow from the others; a reader checks them."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return {
        "task": task_name(config),
        "method": config["model"]["attention"],
        "protocol": (config["data"].get("init_args") or {}).get("protocol"),
        "seed": config.get("seed_everything"),
        "config_hash": hashlib.sha256(text.encode()).hexdigest()[:16],
        "data_hash": starts[-1].get("data_hash"),
    }


def _portable_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as values of JSON, without loggers and folders.

    Only the name remains of other absolute paths. `model.init_from` keeps the last folders and a digest of the others.
    """
    kept: dict[str, Any] = _portable(config)
    if start := config["model"].get("init_from"):
        kept["model"]["init_from"] = _portable_start(str(start))
    kept["trainer"] |= {"default_root_dir": None, "logger": None}
    if "data_dir" in (kept["data"].get("init_args") or {}):
        kept["data"]["init_args"]["data_dir"] = None
    return kept | {"ckpt_path": None}


_OF_A_RUN = 5  # <task>/<backend>/seed<k>/checkpoints/best.ckpt
_OF_A_MACHINE = 3  # /home/<user>


def _portable_start(path: str) -> str:
    """Return a checkpoint's path, with a digest in place of the folders of the machine: unequal paths stay unequal."""
    if not path.startswith(("/", "~")):
        return path
    parts = Path(path).parts
    number = min(max(_OF_A_MACHINE, len(parts) - _OF_A_RUN), len(parts) - 1)
    digest = hashlib.sha256("/".join(parts[:number]).encode()).hexdigest()[:8]
    return "/".join([digest, *parts[number:]])


def _portable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _portable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_portable(inner) for inner in value]
    if isinstance(value, str) and value.startswith(("/", "~")):
        return Path(value).name
    is_json = value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return value if is_json else str(value)


def read_lines(path: Path) -> list[ListedRun]:
    """Read a `.jsonl` file of runs.

    Raises:
        RunError: with file, line number and key for everything that is not as in `SCHEMA`, for a field that
            contradicts `config`, and for a name that is there twice; also for a file without a line, or without
            jsonschema.
    """
    try:
        numbered = list(enumerate(path.read_text(encoding="utf-8").split("\n"), start=1))
    except (OSError, ValueError) as error:
        raise RunError(f"--runs {path} cannot be read ({error}). Fix: name a .jsonl file of runs") from error
    runs: dict[str, ListedRun] = {}
    problems = []
    for number, text in numbered:
        if not text.strip():
            continue
        try:
            run = _read_line(text, Path(f"{path}:{number}"))
            if (name := run.line["name"]) in runs:
                raise _LineError(f"name: {name!r} is that of {runs[name].folder} too. Fix: choose another name")
            runs[name] = run
        except _LineError as error:
            problems.append(f"{path}:{number}: {error}")
    if problems:
        raise RunError("\n".join(problems))
    if not runs:
        raise RunError(f"--runs {path} holds no run. Fix: name another file, or export tested runs with `report`")
    return list(runs.values())


class _LineError(ValueError):
    pass


_EXPORT = "Fix: export the run again with `report`"


def _read_line(text: str, place: Path) -> ListedRun:
    try:
        line = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise _LineError(f"this is not JSON ({error}). {_EXPORT}") from error
    _check_schema(line)
    config, starts = line["config"], line["starts"]
    try:
        usable = usable_config(config)
        if is_pretraining(usable):
            raise ValueError("pretraining has no accuracy on the task")
        expected = _header(config, starts)
    except (DamagedConfigError, LookupError, TypeError, ValueError) as error:
        raise _LineError(f"config: this is not the configuration of a run ({error}). {_EXPORT}") from error
    for key, value in expected.items():
        if line[key] != value:
            where = "starts" if key == "data_hash" else "config"
            raise _LineError(f"{key}: it contradicts {where} (got {line[key]!r}, expected {value!r}). {_EXPORT}")
    result = {"test/accuracy": line["test_accuracy"]}
    if line["test_examples"] is not None:
        result["test/examples"] = line["test_examples"]
    return ListedRun(place, usable, {}, starts, result, (), line)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a valid JSON number")


def _check_schema(line: Any) -> None:
    try:
        from jsonschema import Draft202012Validator
    except ImportError as error:
        raise RunError("--runs with a .jsonl file needs jsonschema. Fix: pip install -e '.[report]'") from error
    errors = sorted(Draft202012Validator(SCHEMA).iter_errors(line), key=lambda error: error.json_path)
    if errors:
        said = [f"{error.json_path.removeprefix('$').removeprefix('.')}: {error.message[:200]}" for error in errors]
        raise _LineError(f"{'; '.join(text.removeprefix(': ') for text in said)}. {_EXPORT}")
