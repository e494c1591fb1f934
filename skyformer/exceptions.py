"""Errors that a user can correct; the command line prints them in one line."""

from collections.abc import Iterator
from contextlib import contextmanager


class RunError(RuntimeError):
    """A command that does not fit the run's folder or checkpoint; the message says what to change."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message names it and what to do."""


@contextmanager
def unwrapping_value_errors() -> Iterator[None]:
    """Raise the `ValueError` of a class that jsonargparse instantiates as `RunError`.

    The argument has the right type and a value that makes no sense. jsonargparse wraps the error in pages of its own.
    """
    try:
        yield
    except ValueError as error:
        raise RunError(str(error.__cause__ or error)) from error
