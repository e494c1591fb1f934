"""Train, evaluate and predict: `python run.py fit --config configs/pathfinder.yaml`."""

import datamodules  # noqa: F401  so that the short names of its classes resolve
import skyformer.attention  # noqa: F401  likewise
from datamodules.batches import BatchSizeError
from datamodules.prepared import PreparedDataError
from skyformer.cli import SkyformerCLI, run


def main(args: list[str] | None = None) -> SkyformerCLI:
    """Run one command; see `python run.py --help`."""
    return run(args, errors=(BatchSizeError, PreparedDataError))


if __name__ == "__main__":
    main()
