"""The leaderboard: a page in Markdown with a table for each task, and with the origin of each run."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from skyformer.report import published
from skyformer.report.comparison import not_as_paper, remarks
from skyformer.report.groups import Group, tasks_of
from skyformer.report.lines import SCHEMA
from skyformer.report.runs import Run
from skyformer.report.settings import format_value
from skyformer.report.table import escape_markdown, markdown_table
from skyformer.report.tables import best_mean, command_of, duration, shown

_INTRODUCTION = """---
hide: [toc]  # the tables are wide
---

# Leaderboard

<!-- `python run.py report` writes this page from runs. Do not edit it: CONTRIBUTING.md shows how to add a run. -->

The test accuracy is that of the best validation checkpoint, as mean ± sample standard deviation over n seeds. Steps are
optimiser steps, with the examples of one step. The time is that of training, without evaluations.

The last column names what differs from most runs of the task. A difference in steps, data, protocol or model makes a
run not comparable. Such runs follow the comparable ones. Bold is the best mean where several are comparable.
"""
Lines = Mapping[Run, Mapping[str, Any]]


def leaderboard(groups: Sequence[Group], lines: Lines) -> str:
    """Return the page as Markdown.

    Args:
        groups: groups of all tasks; untested ones are omitted.
        lines: lines of the tested runs (`lines_of`).
    """
    sections = [_section(task, [group for group in groups if group.task == task], lines) for task in tasks_of(groups)]
    return "\n".join([_INTRODUCTION, *filter(None, sections), _fields()])


def _section(task: str, groups: Sequence[Group], lines: Lines) -> str:
    """The table of a task, and below it the origin of each of its runs; empty without a tested run."""
    tested = [(group, remarks(group, groups)) for group in groups if any(run in lines for run in group.counted)]
    if not tested:
        return ""
    best = best_mean(groups)
    rows, origins = [], []
    for group, said in sorted(tested, key=lambda pair: (not pair[1].is_comparable, -pair[0].mean)):
        is_best = said.is_comparable and shown(group.mean) == best
        rows.append({**_row(group, is_best, lines), "differs in": escape_markdown("; ".join(said.words))})
        origins += [_origin(group, run, lines[run]) for run in group.runs if run in lines]
    table = markdown_table(rows, left=["run", "differs in"])
    return "\n".join([f"## {escape_markdown(published.task_name_of(task))}\n", table, *origins])


def _row(group: Group, is_best: bool, lines: Lines) -> dict[str, str]:
    n = len(group.counted)
    test = f"{group.mean:.2f} ± {group.deviation:.2f} (n={n})" if n > 1 else f"{group.mean:.2f}"
    validation = 100 * _mean([run.best_validation for run in group.counted])
    hours = _mean([run.hours for run in group.counted])
    paper = published.accuracy(group.backend, group.task)
    names = [str(lines[run]["name"]) for run in group.counted if run in lines]
    return {
        "method": escape_markdown(group.label),
        "test, %": f"**{test}**" if is_best else test,
        "validation, %": f"{validation:.2f}" if np.isfinite(validation) else "",
        "paper, %": "" if paper is None else f"{paper:.2f}",
        "steps": f"{min(run.steps for run in group.counted):,} of {group.settings.get('batch', '?')}",
        "training": duration(hours) if np.isfinite(hours) else "",
        "run": ", ".join(f"[{_code(name)}](#{name})" for name in names),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _origin(group: Group, run: Run, line: Mapping[str, Any]) -> str:
    """Return the origin of a run as a folded section: command, commit, versions, hashes."""
    examples = "" if line["test_examples"] is None else f" of {line['test_examples']:,} examples"
    facts = {
        "test accuracy": f"{run.accuracy:.2%}{examples}",
        "machine": escape_markdown(run.device),
        "peak memory": f"{run.peak_memory_gb:.2f} GB" if np.isfinite(run.peak_memory_gb) else None,
        "data hash": _code(line["data_hash"]),
        "config hash": _code(line["config_hash"]),
        "SHA-256 of the checkpoint": _code(line["checkpoint_sha256"]),
        "not as in the paper": escape_markdown(", ".join(not_as_paper(group).values())),
        "source": "the documentation, since the run's folder is lost" if line["source"] == "docs" else None,
    }
    listed = [f"- {name}: {value}" for name, value in facts.items() if value]
    starts = [text for start in line["starts"] for text in _start(start)]
    head = escape(f"{line['name']}: {group.label}, seed {line['seed']}")
    opening = f'<details markdown="1" id="{line["name"]}"><summary>{head}</summary>\n'
    return "\n".join([opening, *listed, *starts, "\n</details>\n"])


def _start(record: Mapping[str, Any]) -> list[str]:
    code, versions = record.get("code") or {}, record.get("versions") or {}
    dirty = " with changes that were not committed" if code.get("dirty") else ""
    origin = {
        "skyformer": code.get("skyformer"),
        "commit": code.get("commit") and str(code["commit"])[:9] + dirty,
        **{name: versions.get(name) for name in ("python", "torch", "lightning")},
    }
    told = [str(record.get("started") or "").partition("T")[0], *(f"{k} {v}" for k, v in origin.items() if v)]
    command = f"- from step {format_value(record.get('from_step'))}: {_code(command_of(dict(record)))}"
    return [command, *([f"    - {escape_markdown(', '.join(filter(None, told)))}"] if any(told) else [])]


def _code(text: Any) -> str:
    return f"`{' '.join(str(text).split()).replace('`', '')}`" if text else "not known"


def _fields() -> str:
    rows = [{"field": f"`{name}`", "content": field["description"]} for name, field in SCHEMA["properties"].items()]
    introduction = "## Fields of a run\n\nA run is a line of JSON. `skyformer/report/run.schema.json` is the schema.\n"
    return "\n".join([introduction, markdown_table(rows, left=["content"])])
