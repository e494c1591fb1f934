"""`python run.py report`: tables and pictures of runs."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console

from skyformer.files import write_atomically, write_table
from skyformer.installation import command_parser
from skyformer.report.cases import case_rows, draw_cases
from skyformer.report.groups import Group, group_runs, tasks_of
from skyformer.report.leaderboard import leaderboard
from skyformer.report.lines import lines_of, read_lines, to_jsonl
from skyformer.report.page import make_page, table_of_rows
from skyformer.report.pictures import BEGINNING, WINDOW, Axis, draw_loss_curves, draw_progress, training_table
from skyformer.report.published import task_name_of
from skyformer.report.runs import Run, find_runs
from skyformer.report.table import Table, markdown_table, print_table, to_latex, to_markdown
from skyformer.report.tables import accuracy_rows, accuracy_table, cost_rows, cost_table, run_rows

_LOSSES = (
    f"Losses: means of what was logged in the first {BEGINNING} and the last {WINDOW} steps. Validation: accuracy."
)
_PROGRESS: dict[str, tuple[str, Axis]] = {
    "Validation accuracy against training time": ("accuracy", "time"),
    "Validation accuracy against steps": ("accuracy", "steps"),
    "Validation loss against training time": ("loss", "time"),
    "Validation loss against steps": ("loss", "steps"),
}


def run_report(args: list[str]) -> None:
    """Write tables as Markdown, LaTeX and CSV, pictures as PNG, and `report.html` with all of it; print the tables.

    Also write each tested run as a line of `runs.jsonl`, and the leaderboard of these runs.

    Args:
        args: arguments after `report`.

    Raises:
        RunError: when there is no run, and for a line of a `.jsonl` file that is not as its schema demands.
        SystemExit: 2 for a wrong argument.
    """
    config = _parser().parse_args(args)
    runs, problems = _read(Path(named).expanduser() for named in config.runs)
    for problem in problems:
        print(problem, file=sys.stderr)
    groups, output = group_runs(runs), Path(config.output).expanduser()
    tables = [accuracy_table(groups), cost_table(groups)]
    console = Console()
    for name, table in zip(("accuracy", "cost"), tables, strict=True):
        print_table(table, console)
        write_atomically(output / f"{name}.md", to_markdown(table))
        write_atomically(output / f"{name}.tex", to_latex(table))
    lines = lines_of(runs)
    write_atomically(output / "runs.jsonl", to_jsonl(lines.values()))
    write_atomically(output / "leaderboard.md", leaderboard(groups, lines))
    _write_rows(groups, output)
    training = _write_training(groups, output)
    pictures = _draw(groups, output)
    write_atomically(output / "report.html", make_page(tables, pictures, training, groups, problems))
    print(
        f"{output}/report.html; in the same folder: tables as .md, .tex and .csv, pictures, leaderboard.md, runs.jsonl"
    )


def _read(named: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Return the runs of these folders and files, and messages about unreadable ones."""
    paths = list(named)
    files = [path for path in paths if path.suffix == ".jsonl"]
    listed = [run for file in files for run in read_lines(file)]
    folders = [path for path in paths if path not in files]
    runs, problems = find_runs(folders) if folders or not listed else ([], [])
    return [*runs, *listed], problems


def _write_rows(groups: Sequence[Group], output: Path) -> None:
    for name, rows in (
        ("accuracy", accuracy_rows(groups)),
        ("cost", cost_rows(groups)),
        ("runs", run_rows(groups)),
    ):
        write_table(output / f"{name}.csv", list(rows[0]), rows)
    if rows := case_rows(groups):
        write_table(output / "accuracy_by_case.csv", list(rows[0]), rows)


def _write_training(groups: Sequence[Group], output: Path) -> list[Table]:
    tasks = tasks_of(groups)
    rows = {task: training_table(groups, task) for task in tasks}
    sections = [f"## {task}\n\n{markdown_table(rows[task])}" for task in tasks]
    write_atomically(output / "training.md", "\n".join([f"{_LOSSES}\n", *sections]))
    return [table_of_rows(f"Training, {task_name_of(task)}", rows[task], [_LOSSES]) for task in tasks]


def _draw(groups: Sequence[Group], output: Path) -> dict[str, Path]:
    """The pictures that there was something to draw for, by their captions."""
    drawn = {}
    if draw_cases(groups, output / "accuracy_by_case.png"):
        drawn["Test accuracy on each kind of examples"] = output / "accuracy_by_case.png"
    for caption, (quantity, axis) in _PROGRESS.items():
        path = output / f"{quantity}_against_{axis}.png"
        if draw_progress(groups, quantity, axis, path):
            drawn[caption] = path
    if draw_loss_curves(groups, output / "loss_curves.png"):
        drawn["Training loss"] = output / "loss_curves.png"
    return drawn


def _parser() -> ArgumentParser:
    parser = command_parser("report", "Tables and pictures of runs, finished or not.")
    parser.add_argument(
        "--runs", type=list[str], default=["runs"], help="Folders with runs in or below them, and .jsonl files."
    )
    parser.add_argument("--output", type=str, default="report", help="Folder to write to.")
    return parser
