"""Errors that a user can correct; the command line prints them in one line."""


class RunError(RuntimeError):
    """A command that does not fit the run's folder or checkpoint; the message says what to change."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message names it and what to do."""
