"""Settings that evaluate as the published code does. Every field is off by default."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """Settings of the published Skyformer code.

    A field that does not concern a task has no effect on it.

    Attributes:
        brackets: False drops all brackets of ListOps, so the scopes of its operators are lost.
        val_is_test: Text with all 25,000 reviews to train on, and the test set in place of the validation set.
        document_bytes: Text and Retrieval cut to this many bytes, where the task's own setting is longer.
        pad_to_max_length: every sequence padded to the task's full length.
        drop_last_test: leave out the last incomplete batch of the test set.
        published_val_size: validate on a fixed random subset, as large as in the published code: 62 batches of 32 on
            ListOps, 200 of 32 on Text, 300 of 16 on Retrieval, 156 of 128 on Pathfinder. Image uses the whole set.
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
        """Return the number of bytes to keep of a document, given the task's own `max_bytes`."""
        return min(max_bytes, self.document_bytes or max_bytes)


OURS = Protocol()
