"""Read TensorBoard's event files."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, ScalarEvent

EVENTS = "events.out.tfevents.*"


def read_scalars(folder: Path) -> tuple[dict[str, list[ScalarEvent]], bool]:
    """Return all points of the curves in a folder's event files by name, in the order of writing.

    Also return whether a file is corrupt or still being written. It is then read up to that point.
    """
    if not any(folder.glob(EVENTS)):
        return {}, False
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})  # 0: all points
    with _detect_truncation() as heard:
        events.Reload()
    return {name: events.Scalars(name) for name in events.Tags()["scalars"]}, bool(heard)


@contextmanager
def _detect_truncation() -> Iterator[list[str]]:
    """Detect a corrupt file: TensorBoard skips its rest and reports this only to its log."""
    heard: list[str] = []
    logger = logging.getLogger("tensorboard")
    former = logger.level, logger.propagate
    listener = logging.Handler()
    listener.emit = lambda record: heard.append(str(record.msg)) if "Truncated" in str(record.msg) else None  # type: ignore[method-assign]
    logger.addHandler(listener)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield heard
    finally:
        logger.removeHandler(listener)
        logger.setLevel(former[0])
        logger.propagate = former[1]
