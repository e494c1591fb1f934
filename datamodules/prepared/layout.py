"""Check that a task can have written its arrays, before any batch is made of them."""

from typing import NamedTuple

import numpy as np

BLOCK = 1 << 22  # tokens looked at together: few enough to stay in the cache
MAX_IDS = 1 << 15  # of tokens or labels; more would not fit int16
UNLABELLED = -100  # the label of a token without one; torch's cross-entropy ignores it


class Layout(NamedTuple):
    """The contents of a task's arrays.

    Attributes:
        num_documents: an example.
        num_classes: labels are below it.
        max_length: tokens of the longest document that a batch can hold; of every one where `fixed_length`.
        fixed_length: whether all documents have `max_length` tokens, as images do.
        lowest_token, highest_token: range of the stored token ids.
        token_labels: whether each token has a label, which may be `UNLABELLED`, in place of each example.
    """

    num_documents: int
    num_classes: int
    max_length: int
    fixed_length: bool
    lowest_token: int
    highest_token: int
    token_labels: bool = False

    @property
    def dtypes(self) -> dict[str, str]:
        """The dtype of each array: bytes where they suffice, else int16."""
        return {
            "tokens": "uint8" if self.highest_token < 256 else "int16",
            "offsets": "int64",
            "labels": "uint8" if self.num_classes <= 256 and not self.token_labels else "int16",
        }


class Fault(NamedTuple):
    """The array that is wrong, and how."""

    array: str
    what: str


def structure_fault(
    tokens: np.ndarray, offsets: np.ndarray, labels: np.ndarray, token_labels: bool = False
) -> Fault | None:
    """Return the fault if these are not concatenated documents, equally many for each label; shapes as in `Split`."""
    if not len(labels):
        return Fault("labels", "holds no example")
    count = len(offsets) - 1
    if token_labels:
        if len(labels) != len(tokens):
            return Fault("labels", f"has {len(labels):,} labels, expected one for each of the {len(tokens):,} tokens")
    elif count < 1 or count % len(labels):
        return Fault("offsets", f"has {count:,} documents, which {len(labels):,} examples (labels.bin) cannot share")
    if offsets[0] != 0 or offsets[-1] != len(tokens):
        found = f"{offsets[0]:,} to {offsets[-1]:,}"
        return Fault("offsets", f"goes from {found}, expected 0 to {len(tokens):,}, the size of tokens.bin")
    if (falls := offsets[1:] < offsets[:-1]).any():
        return Fault("offsets", f"falls after offset {int(falls.argmax()):,}")
    return None


def layout_fault(tokens: np.ndarray, offsets: np.ndarray, labels: np.ndarray, layout: Layout) -> Fault | None:
    """Return the fault if well-formed arrays are not those of the task. Skip tokens if all 256 ids are valid."""
    if not layout.token_labels and len(offsets) - 1 != layout.num_documents * len(labels):
        expected = f"{layout.num_documents} for each of the {len(labels):,} examples of labels.bin"
        return Fault("offsets", f"has {len(offsets) - 1:,} documents, expected {expected}")
    classes = labels
    if layout.token_labels:
        is_labelled = labels != UNLABELLED
        classes, before = labels[is_labelled], np.concatenate([[0], np.cumsum(is_labelled)])[offsets]
        if (bare := before[1:] == before[:-1]).any():
            return Fault("labels", f"has no label for document {int(bare.argmax()):,}")
    if (label := classes.max()) >= layout.num_classes or (label := classes.min()) < 0:
        return Fault("labels", f"has label {label}, none of 0 ... {layout.num_classes - 1}")
    lengths = np.diff(offsets)
    shortest, longest = int(lengths.min()), int(lengths.max())
    least = layout.max_length if layout.fixed_length else 1
    if shortest < least or longest > layout.max_length:
        found, expected = f"{shortest:,} to {longest:,} tokens", f"{least:,} to {layout.max_length:,}"
        return Fault("offsets", f"has documents of {found}, expected {expected}")
    lowest, highest = layout.lowest_token, layout.highest_token
    if lowest > np.iinfo(tokens.dtype).min or highest < np.iinfo(tokens.dtype).max:
        for start in range(0, len(tokens), BLOCK):
            block = tokens[start : start + BLOCK]
            if block.min() < lowest or block.max() > highest:
                found = f"{block.min()} to {block.max()}"
                return Fault("tokens", f"has tokens {found} from place {start:,}, expected {lowest} to {highest}")
    return None
