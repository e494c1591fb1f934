"""What it takes to evaluate as the published code does; every field is off by default."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """Departures of the published Skyformer code that a published number needs.

    A field that does not concern a task leaves it as it is.

    Attributes:
        drop_brackets: ListOps without any bracket, which is how its operators' scopes were lost.
        zero_is_padding: Image and Pathfinder with black pixels as padding.
        pad_to_max_length: every sequence padded to the task's full length.
        drop_last_test: leave out the last incomplete batch of the test set.
    """

    drop_brackets: bool = False
    zero_is_padding: bool = False
    pad_to_max_length: bool = False
    drop_last_test: bool = False
