"""Errors that a user can correct; the command line prints them in one line."""

from collections.abc import Iterator
from contextlib import contextmanager


class RunError(RuntimeError):
    """A command does not fit the run's folder or checkpoint. The message says what to change."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used. The message names it and the fix.

    Args:
        problem: what is wrong; the whole message if no fix follows.
        fix: what the user can do.
    """

    def __init__(self, problem: str, fix: str = "") -> None:
        super().__init__(f"{problem}. Fix: {fix}" if fix else problem)
        self.problem = problem


@contextmanager
def unwrapping_value_errors() -> Iterator[None]:
    """Raise the `ValueError` of a class that jsonargparse instantiates as `RunError`.

    The argument has the right type and an invalid value. jsonargparse would wrap the error in pages of output.
    """
    try:
        yield
    except ValueError as error:
        raise RunError(str(error.__cause__ or error)) from error
