"""The whole report as one HTML file that needs nothing else."""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from skyformer.report.groups import Group
from skyformer.report.page_style import STYLE
from skyformer.report.published import task_name_of
from skyformer.report.run import Run
from skyformer.report.runs_table import command_of
from skyformer.report.settings import say
from skyformer.report.style import style_of
from skyformer.report.table import Cell, Table, to_html


def make_page(
    tables: Sequence[Table],
    pictures: Mapping[str, Path],
    details: Sequence[Table],
    groups: Sequence[Group],
    problems: Sequence[str],
) -> str:
    """HTML with tables, pictures by their captions, tables of details, and how each run was made."""
    runs = [run for group in groups for run in group.runs]
    tasks = list(dict.fromkeys(task_name_of(group.task) for group in groups))
    summary = f"{len(runs)} run{'s' * (len(runs) != 1)} on {', '.join(tasks)}."
    parts = [f"<h1>Attention methods compared</h1>\n<p>{escape(summary)}</p>\n"]
    if problems:
        items = "".join(f"<li>{escape(problem)}</li>\n" for problem in problems)
        parts.append(f'<section class="problems"><h2>Not read, or not whole</h2>\n<ul>\n{items}</ul></section>\n')
    parts += [_section(table) for table in tables]
    parts += [_picture(caption, path) for caption, path in pictures.items()]
    parts += [_section(table) for table in details]
    parts.append("<section><h2>How each run was made</h2>\n")
    parts += [_run(group, run) for group in groups for run in group.runs]
    body = "".join([*parts, "</section>\n"])
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<title>Attention methods compared</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _section(table: Table) -> str:
    return f"<section><h2>{escape(table.title)}</h2>\n{to_html(table)}</section>\n"


def _picture(caption: str, path: Path) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    return (
        f"<section><h2>{escape(caption)}</h2>\n<figure>"
        f'<img alt="{escape(caption)}, one line a method; the numbers are in the tables and in runs.csv" '
        f'src="data:image/png;base64,{content}"></figure></section>\n'
    )


def _run(group: Group, run: Run) -> str:
    """Folded, since there may be many."""
    accuracy = "not tested" if run.accuracy is None else f"{100 * run.accuracy:.2f} %"
    steps = f"{run.steps:,} steps, stopped early" if run.stopped_early else f"{run.steps:,} steps"
    head = f"{task_name_of(run.task)}, {group.label}, seed {run.seed}: {steps}, {accuracy}"
    starts = "".join(_start(record) for record in run.records) or "<p>No record.json.</p>"
    apart = ", ".join(f"{name}={say(value)}" for name, value in (group.variant | group.others).items())
    facts = {
        "settings": apart,
        "stopped early": run.stopped_early.get("reason"),
        "folder": run.folder,
        "checkpoint tested": (run.result or {}).get("checkpoint"),
    }
    return (
        f'<details><summary><span class="dot" style="background:{style_of(run.backend).color}"></span>'
        f"{escape(head)}</summary>\n{_facts(facts)}{starts}</details>\n"
    )


def _start(record: Mapping[str, Any]) -> str:
    code, hardware = record.get("code") or {}, record.get("hardware") or {}
    dirty = {"True": ", with changes that were not committed", "False": ""}.get(str(code.get("dirty")), "")
    versions = record.get("versions") or {}
    facts = {
        f"from step {record.get('from_step', '?')}": record.get("started"),
        "command": command_of(dict(record)),
        "commit": f"{code.get('commit') or 'not known'}{dirty}",
        "data": record.get("data_hash"),
        "processes": record.get("num_processes"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "machine": ", ".join(f"{name} {_plain(value)}" for name, value in hardware.items() if value),
    }
    return _facts(facts)


def _facts(facts: Mapping[str, Any]) -> str:
    items = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(str(v))}</dd>" for name, v in facts.items() if v)
    return f"<dl>{items}</dl>\n"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def table_of_rows(title: str, rows: Sequence[Mapping[str, str]], notes: Sequence[str] = ()) -> Table:
    """Equal-keyed rows as a table."""
    first, *others = rows[0]
    cells = tuple((row[first], tuple(Cell(row[name]) for name in others)) for row in rows)
    return Table(title, (first, *others), cells, tuple(notes))
