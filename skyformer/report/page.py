"""The report as one HTML page."""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from skyformer.report.groups import Group
from skyformer.report.published import task_name_of
from skyformer.report.runs import Run
from skyformer.report.settings import format_value
from skyformer.report.style import style_of
from skyformer.report.table import Cell, Table, to_html
from skyformer.report.tables import command_of

STYLE = """
:root { --ink: #1a1a1a; --dim: #595959; --line: #d0d0d0; --paper: #fff; --shade: #f5f5f5; --warn: #8a3b00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --dim: #a8a8a8; --line: #444; --paper: #161616; --shade: #222; --warn: #ffb37a; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
.wide { overflow-x: auto; }
.wide:focus-visible, summary:focus-visible { outline: 2px solid #0072B2; outline-offset: 2px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
th, td { padding: .35rem .7rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; }
thead th { border-bottom: 2px solid var(--ink); vertical-align: bottom; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); min-width: 7rem; }
tbody th { max-width: 16rem; overflow-wrap: break-word; }
tbody th { font-weight: 600; }
small { display: block; color: var(--dim); font-size: .8rem; }
.long { white-space: normal; min-width: 9rem; }
.notes { color: var(--dim); font-size: .85rem; max-width: 60rem; overflow-wrap: anywhere; }
.notes p { margin: .5rem 0; }
.problems { border-left: 4px solid var(--warn); padding-left: 1rem; overflow-wrap: anywhere; }
figure { margin: 0; background: #fff; border-radius: 4px; overflow-x: auto; }
img { display: block; width: 100%; min-width: 34rem; height: auto; }
details { border-bottom: 1px solid var(--line); }
summary { cursor: pointer; padding: .4rem 0; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin: 0 .4em; border: 1px solid #8888; }
dl { display: grid; grid-template-columns: 8.5rem 1fr; gap: .1rem .8rem; margin: .3rem 0 1rem; font-size: .85rem; }
dt { color: var(--dim); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) { tbody th { max-width: 9rem; } dl { grid-template-columns: 1fr; } dd { margin: 0 0 .4rem; } }
@media print {
  :root { --ink: #000; --dim: #444; --line: #bbb; --paper: #fff; --shade: #fff; }
  main { max-width: none; padding: 0; } .wide, figure { overflow: visible; } img { min-width: 0; }
  table { font-size: 7.5pt; } small { font-size: 6.5pt; } th, td { padding: 2pt 4pt; } td { white-space: normal; }
  th:first-child { position: static; }
  tr, figure, .notes p, details { break-inside: avoid; } h2 { break-after: avoid; }
}
"""


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
    apart = ", ".join(f"{name}={format_value(value)}" for name, value in (group.variant | group.others).items())
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
