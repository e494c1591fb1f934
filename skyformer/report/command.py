"""`python run.py report --runs runs`: tables and pictures of runs."""

from pathlib import Path

from jsonargparse import ArgumentParser

from skyformer.files import write_whole
from skyformer.report.curves import BEGINNING, WINDOW, draw_loss_curves, training_table
from skyformer.report.markdown import markdown_table
from skyformer.report.read import find_runs


def run_report(args: list[str]) -> None:
    """Write `loss_curves.png` and `training.md`, and print the latter.

    Args:
        args: arguments after `report`.

    Raises:
        RunError: when there is no run.
        SystemExit: 2 for a wrong argument.
    """
    config = _parser().parse_args(args)
    runs = find_runs(Path(folder) for folder in config.runs)
    output = Path(config.output)
    losses = f"Losses: means of what was logged in the first {BEGINNING} and the last {WINDOW} steps."
    parts = [f"{losses} Memory: peak of the process.\n"]
    for task in sorted({run.task for run in runs}):
        parts.append(f"## {task}\n\n{markdown_table(training_table(runs, task))}")
    text = "\n".join(parts)
    print(text)
    write_whole(output / "training.md", text)
    draw_loss_curves(runs, output / "loss_curves.png")
    print(f"{output}/training.md, {output}/loss_curves.png")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="run.py report", description="Tables and pictures of runs, finished or not.", allow_abbrev=False
    )
    parser.add_argument("--runs", type=list[str], default=["runs"], help="Folders with runs in or below them.")
    parser.add_argument("--output", type=str, default="report", help="Folder to write to.")
    return parser
