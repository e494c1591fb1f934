"""Files that are whole or absent."""

import os
from pathlib import Path


def write_whole(path: Path, content: bytes | memoryview | str, former: Path | None = None) -> None:
    """Write beside `path` and rename, so that a crash or a full disk leaves what was there as it was.

    Args:
        path: the file; its folder is made if missing.
        content: text is written as UTF-8.
        former: the name under which what was there is kept.

    Raises:
        OSError: naming the file that could not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        if former and path.exists():
            os.replace(path, former)
        os.replace(partial, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a failed write does not say where
        raise
    finally:
        partial.unlink(missing_ok=True)


def next_free(folder: Path, stem: str, suffix: str) -> Path:
    """The first of `<stem>.1<suffix>`, `<stem>.2<suffix>`, … that is not there."""
    number = 1
    while (folder / f"{stem}.{number}{suffix}").exists():
        number += 1
    return folder / f"{stem}.{number}{suffix}"
