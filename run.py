"""Train, evaluate, predict, prepare data: `python run.py fit --config configs/pathfinder.yaml`."""

import sys
from typing import Any

import datamodules  # noqa: F401  so that the short names of its classes resolve
import skyformer.attention  # noqa: F401  likewise
from datamodules.batches import BatchSizeError
from datamodules.prepare_command import run_prepare
from datamodules.prepared import PreparedDataError
from skyformer.cli import SkyformerCLI, say_errors


def main(args: list[str] | None = None) -> Any:
    """Run one command; see `python run.py --help`."""
    given = sys.argv[1:] if args is None else args
    with say_errors(BatchSizeError, PreparedDataError):
        return run_prepare(given[1:]) if given[:1] == ["prepare"] else SkyformerCLI(args)


if __name__ == "__main__":
    main()
