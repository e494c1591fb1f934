"""`python run.py prepare --config configs/<task>.yaml`: make a task's data without training."""

import os
import time
from typing import Any

from jsonargparse import SUPPRESS, ArgumentParser, Namespace

from datamodules.base import SequenceDataModule
from datamodules.summary import print_summary
from skyformer.exceptions import unwrapping_value_errors
from skyformer.installation import command_parser
from skyformer.training.config_checks import check_config, check_nulls

# Other sections of a task's YAML and its overlays; they do not affect the data.
_OTHERS = (
    "best_checkpoint",
    "ckpt_path",
    "last_checkpoint",
    "model",
    "non_finite_loss",
    "predictions",
    "seed_everything",
    "test_after_fit",
    "trainer",
    "verbose",
    "weights_only",
)


def run_prepare(args: list[str]) -> SequenceDataModule:
    """Prepare the data of a configuration and print what was made.

    Args:
        args: arguments after `prepare`.

    Raises:
        PreparedDataError: if it cannot be made, or if a file has changed since.
        RunError: for an invalid value.
        SystemExit: 2 for a wrong argument.
    """
    parser = _parser()
    config = parser.parse_args(args)
    check_nulls(parser, config)
    only_data = Namespace(data=config.data)  # of what else a file says nothing is made
    check_config(only_data)
    with unwrapping_value_errors():
        data: SequenceDataModule = parser.instantiate(only_data).data
    there = os.path.exists(data.folder / "meta.json")  # Path's own raises where it may not look
    start = time.perf_counter()
    data.prepare_data()
    seconds = time.perf_counter() - start
    data.setup("fit")
    print_summary(data, None if there else seconds)
    return data


def _parser() -> ArgumentParser:
    parser = command_parser(
        "prepare", "Make a task's data without training, and print what it is. Takes the YAML files that fit takes."
    )
    parser.add_argument("--config", action="config", help="A task's YAML file, then overlays; later ones win.")
    parser.add_subclass_arguments(SequenceDataModule, "data", required=True)
    for name in _OTHERS:
        parser.add_argument(f"--{name}", type=Any, help=SUPPRESS)
    return parser
