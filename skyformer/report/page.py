"""The report as one HTML page."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from skyformer.report.groups import Group
from skyformer.report.published import task_name_of
from skyformer.report.runs import Run
from skyformer.report.settings import format_value
from skyformer.report.style import style_of
from skyformer.report.table import WIDEST, Cell, Table
from skyformer.report.tables import command_of


def make_page(
    tables: Sequence[Table],
    pictures: Mapping[str, Path],
    details: Sequence[Table],
    groups: Sequence[Group],
    problems: Sequence[str],
) -> str:
    """HTML with tables, pictures by their captions, tables of details, and how each run was made."""
    loader = PackageLoader("skyformer", "report")
    templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return templates.get_template("page.html.jinja").render(
        tasks=list(dict.fromkeys(task_name_of(group.task) for group in groups)),
        runs=[_run(group, run) for group in groups for run in group.runs],
        problems=problems,
        tables=tables,
        pictures={caption: base64.b64encode(path.read_bytes()).decode() for caption, path in pictures.items()},
        details=details,
        widest=WIDEST,
    )


def _run(group: Group, run: Run) -> dict[str, Any]:
    """Return what the page's template needs about a run."""
    accuracy = "not tested" if run.accuracy is None else f"{100 * run.accuracy:.2f} %"
    steps = f"{run.steps:,} steps, stopped early" if run.stopped_early else f"{run.steps:,} steps"
    return {
        "head": f"{task_name_of(run.task)}, {group.label}, seed {run.seed}: {steps}, {accuracy}",
        "color": style_of(run.backend).color,
        "facts": {
            "settings": ", ".join(
                f"{name}={format_value(value)}" for name, value in (group.variant | group.others).items()
            ),
            "stopped early": run.stopped_early.get("reason"),
            "folder": run.folder,
            "checkpoint tested": (run.result or {}).get("checkpoint"),
        },
        "starts": [_start(record) for record in run.records],
    }


def _start(record: Mapping[str, Any]) -> dict[str, Any]:
    code, hardware = record.get("code") or {}, record.get("hardware") or {}
    dirty = {"True": ", with changes that were not committed", "False": ""}.get(str(code.get("dirty")), "")
    versions = record.get("versions") or {}
    return {
        f"from step {record.get('from_step', '?')}": record.get("started"),
        "command": command_of(dict(record)),
        "commit": f"{code.get('commit') or 'not known'}{dirty}",
        "data": record.get("data_hash"),
        "processes": record.get("num_processes"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "machine": ", ".join(f"{name} {_plain(value)}" for name, value in hardware.items() if value),
    }


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def table_of_rows(title: str, rows: Sequence[Mapping[str, str]], notes: Sequence[str] = ()) -> Table:
    """Equal-keyed rows as a table."""
    first, *others = rows[0]
    cells = tuple((row[first], tuple(Cell(row[name]) for name in others)) for row in rows)
    return Table(title, (first, *others), cells, tuple(notes))
