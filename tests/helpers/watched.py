"""Watches what the interpreter is asked to do: files outside some folders, processes, connections, unpickled code."""

import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHANGES = {"os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.link", "os.symlink", "os.chmod"}
UNPICKLED = ("numpy", "_codecs")  # what arrays are made of
NEVER = ("subprocess.", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "socket.connect")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
ROOT = Path(__file__).parents[2]
# Modules are imported late, and cores counted.
PROGRAM = tuple(map(os.path.realpath, (sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), ROOT, "/proc")))
_watchers: list["Watch"] = []  # of which the last one is active; an audit hook stays for good


class Watch:
    """What was done that should not have been, a line each in `found`.

    Args:
        readable: folders in which files may be read, beside the program's own.
        writable: folder in which they may also be written.
    """

    def __init__(self, readable: list[Path], writable: Path) -> None:
        self.writable = (os.path.realpath(writable), os.devnull)
        self.readable = (*map(os.path.realpath, readable), *self.writable, *PROGRAM)
        self.found: list[str] = []

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes):
            path, mode, flags = arguments
            writes = any(letter in (mode or "") for letter in "wax+") or bool((flags or 0) & WRITING)
            self._see_path(event, path, self.writable if writes else self.readable)
        elif event in CHANGES and -1 in arguments[1:]:  # others are relative to a folder that was opened before
            for path in arguments:
                if isinstance(path, str | bytes):
                    self._see_path(event, path, self.writable)
        elif event.startswith(NEVER) or (event == "pickle.find_class" and not arguments[0].startswith(UNPICKLED)):
            self.found.append(f"{event} {arguments}")

    def _see_path(self, event: str, path: str | bytes, places: tuple[str, ...]) -> None:
        # Of a link to be removed or renamed its place counts, not what it leads to.
        folder, name = os.path.split(os.path.abspath(os.fsdecode(path)))
        place = os.path.realpath(os.fsdecode(path)) if event == "open" else f"{os.path.realpath(folder)}/{name}"
        if not any(Path(place).is_relative_to(allowed) for allowed in places):
            self.found.append(f"{event} {os.fsdecode(path)}")


@contextmanager
def watching(readable: list[Path], writable: Path) -> Iterator[Watch]:
    """Watch all threads while the block runs."""
    if not _watchers:
        sys.addaudithook(_hook)
        _watchers.append(Watch([], ROOT))  # never asked; keeps the hook from being added again
    watch = Watch(readable, writable)
    _watchers.append(watch)
    try:
        yield watch
    finally:
        _watchers.remove(watch)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if len(_watchers) > 1:
        _watchers[-1].see(event, arguments)
