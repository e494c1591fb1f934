"""What it takes to evaluate as the published code does; every field is off by default."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """Departures of the published Skyformer code that a published number needs.

    A field that does not concern a task leaves it as it is.

    Attributes:
        brackets: False: ListOps without any bracket, which is how its operators' scopes were lost.
        val_is_test: Text with all 25,000 reviews to train on, and the test set in place of the validation set.
        document_bytes: Text and Retrieval cut to this many bytes, where the task's own setting is longer.
        pad_to_max_length: every sequence padded to the task's full length.
        drop_last_test: leave out the last incomplete batch of the test set.
        published_val_size: as many examples of the validation set, always the same random ones, as the published code
            evaluated in its fixed number of batches: 62 of 32 on ListOps, 200 of 32 on Text, 300 of 16 on Retrieval,
            156 of 128 on Pathfinder, the whole validation set on Image.
    """

    brackets: bool = True
    val_is_test: bool = False
    document_bytes: int | None = None
    pad_to_max_length: bool = False
    drop_last_test: bool = False
    published_val_size: bool = False

    def __post_init__(self) -> None:
        if self.document_bytes is not None and self.document_bytes < 1:
            raise ValueError(f"data.protocol.document_bytes={self.document_bytes} must be at least 1")

    def cut(self, max_bytes: int) -> int:
        """How many bytes of a document count, where the task's own setting is `max_bytes`."""
        return min(max_bytes, self.document_bytes or max_bytes)


OURS = Protocol()
