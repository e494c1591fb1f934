"""The command line: what `python run.py`, `python -m skyformer` and the installed command `skyformer` run."""

import io
import os
import sys
from typing import Any

import datamodules  # noqa: F401  makes the short names of its classes known
import skyformer.attention  # noqa: F401  as above
from datamodules.batches import BatchSizeError
from datamodules.files import PreparedDataError
from skyformer.benchmark.command import run_benchmark
from skyformer.cli import SkyformerCLI
from skyformer.error_messages import exit_on_error
from skyformer.export.command import run_export, with_its_configuration
from skyformer.extract import run_extract
from skyformer.installation import run_configs, with_shipped_configs
from skyformer.prepare import run_prepare
from skyformer.report.command import run_report
from skyformer.study.command import run_study
from skyformer.sweep.command import run_sweep
from skyformer.training.config_checks import check_files

COMMANDS = {
    "prepare": run_prepare,
    "extract": run_extract,
    "export": run_export,
    "report": run_report,
    "benchmark": run_benchmark,
    "study": run_study,
    "sweep": run_sweep,
    "configs": run_configs,
}  # in addition to LightningCLI's: fit, validate, test, predict


def main(args: list[str] | None = None) -> Any:
    """Run one command; see `python run.py --help`."""
    given = with_shipped_configs(sys.argv[1:] if args is None else args)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows a question mark
    with exit_on_error(BatchSizeError, PreparedDataError):
        check_files(given)
        command = COMMANDS.get(given[0]) if given else None
        return command(given[1:]) if command else SkyformerCLI(with_its_configuration(given))


def console_script() -> None:
    """Run `skyformer`: `main`, where class paths may name modules of the working directory, as with `python -m`."""
    sys.path.insert(0, os.getcwd())
    main()


if __name__ == "__main__":
    main()
