"""`python run.py study <name>`: what the paper measures apart from accuracy, locality, and similarities of texts."""

from collections.abc import Callable

from skyformer.exceptions import RunError
from skyformer.installation import program_name
from skyformer.study.approximation import run_approximation
from skyformer.study.locality import run_locality
from skyformer.study.similarity import run_similarity
from skyformer.study.spectrum import run_spectrum
from skyformer.study.stability import run_stability

_STUDIES: dict[str, Callable[[list[str]], None]] = {
    "approximation": run_approximation,
    "locality": run_locality,
    "similarity": run_similarity,
    "spectrum": run_spectrum,
    "stability": run_stability,
}


def run_study(args: list[str]) -> None:
    """Measure, print a table, write CSV, Markdown and pictures.

    Args:
        args: arguments after `study`: which one, then its own.

    Raises:
        RunError: for a study or a value that makes no sense.
        CheckpointError: for a checkpoint that cannot be read.
        SystemExit: 2 for a wrong argument.
    """
    known = ", ".join(_STUDIES)
    if args and args[0] in ("-h", "--help"):
        print(f"usage: {program_name()} study <name> ...\n\nNames, each with --help: {known}.")
        return
    if not args or args[0] not in _STUDIES:
        raise RunError(f"study {args[0] if args else ''}: name one of {known}; each takes --help")
    _STUDIES[args[0]](args[1:])
