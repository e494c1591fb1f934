"""Train, evaluate and predict: `python run.py fit --config configs/pathfinder.yaml`."""

import datamodules
import skyformer.attention  # noqa: F401  so that short class names resolve
from datamodules.prepared import PreparedDataError
from skyformer.cli import SkyformerCLI, run


def main(args: list[str] | None = None) -> SkyformerCLI:
    """Run one command; see `python run.py --help`."""
    return run(args, errors=(PreparedDataError,))


if __name__ == "__main__":
    main()
