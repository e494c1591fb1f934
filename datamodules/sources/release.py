"""Extract a few files of the Long Range Arena release without unpacking the rest."""

import errno
import gzip
import hashlib
import os
import sys
import tarfile
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from rich.progress import DownloadColumn, Progress, TaskID

from datamodules.examples import progress_bar
from datamodules.files import PreparedDataError, open_regular, printable, waiting_lock
from datamodules.sources.archives import source_path
from datamodules.sources.remote import RemoteFile

SUMS = "SHA256SUMS"
BLOCK = 1 << 20
STDIN = "-"


def extract(source: str, names: Sequence[str], folder: Path) -> dict[str, str]:
    """Write the named files of the release into `folder`, and their checksums into `SHA256SUMS`.

    The archive is read once, up to the last of these files. Its own checksum is at its end, so it is not checked if all
    files are found. A file gets its name when it is complete, so a later call needs only those that are missing.

    Args:
        source: path or URL of the gzipped tar archive; `-` for standard input.
        names: names of the files, without their folders.
        folder: where to put them; made if missing.

    Returns:
        SHA-256 of each file by name.

    Raises:
        PreparedDataError: if the archive is damaged, truncated or lacks a file, if the disk is full, or if a file has
            changed since it was extracted.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with waiting_lock(folder / f".{SUMS}.lock"):
            sums = _finished(names, folder)
            missing = [name for name in names if name not in sums]
            with closing(_members(source, missing)) as members:
                for name, blocks in members:
                    sums[name] = _write(blocks, folder / name)
                    _write_sums(sums, folder)
            _write_sums(sums, folder)
    except OSError as error:  # of the disk: the source's are PreparedDataErrors
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = "free some space, or name a folder on another disk" if full else "name a folder that can be written to"
        raise PreparedDataError(
            f"cannot write {error.filename or folder}: {error.strerror}. Finished files are kept. Fix: {fix} (--output)"
        ) from error
    if absent := [name for name in names if name not in sums]:
        raise PreparedDataError(
            f"{_shown(source)} has no {', '.join(absent)}. Fix: name the archive of the Long Range Arena release"
        )
    return {name: sums[name] for name in names}


def _finished(names: Sequence[str], folder: Path) -> dict[str, str]:
    """Checksums of the files that are there.

    Raises:
        PreparedDataError: for a file that has changed since.
    """
    recorded: dict[str, str] = {}
    if (folder / SUMS).exists():
        lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
        recorded = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    sums = {}
    for name in names:
        if (folder / name).exists():
            with (folder / name).open("rb") as file:
                sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
            if sums[name] != recorded.get(name, sums[name]):
                raise PreparedDataError(
                    f"{folder / name} has changed: its sha256 is {sums[name]}, {SUMS} has {recorded[name]}. Fix: "
                    "remove the file and run again"
                )
    return sums


def _members(source: str, names: Sequence[str]) -> Generator[tuple[str, Iterator[bytes]], None, None]:
    """Yield name and content of each of these files, in the order of the archive; the first of equal names counts."""
    missing = set(names)
    if not missing:
        return
    with ExitStack() as stack:
        stream = stack.enter_context(_Stream(source))
        stack.enter_context(_reading(source, stream))
        unzipped = stack.enter_context(gzip.GzipFile(fileobj=stream))  # type: ignore[call-overload]
        archive = stack.enter_context(tarfile.open(fileobj=unzipped, mode="r|"))
        while missing and (member := archive.next()):
            archive.members.clear()  # type: ignore[attr-defined]  # of 600,000 images
            name = PurePosixPath(member.name).name
            if name in missing and member.isreg():
                missing.remove(name)
                yield name, _blocks(source, stream, archive.extractfile(member))
        while missing and unzipped.read(BLOCK):  # to the checksum: a damaged header looks like the end
            pass


def _blocks(source: str, stream: "_Stream", content: Any) -> Iterator[bytes]:
    with _reading(source, stream):
        while block := content.read(BLOCK):
            yield block


class _Stream:
    """The archive's bytes, with a progress bar. It only reads: a pipe cannot seek."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.position = 0
        self.resources = ExitStack()
        self.file, size = self._open(source)
        self.progress: Progress = self.resources.enter_context(progress_bar(DownloadColumn()))
        self.bar: TaskID = self.progress.add_task("Reading the release", total=size)

    def _open(self, source: str) -> tuple[Any, int | None]:
        if source == STDIN:
            return sys.stdin.buffer, None
        if source.startswith(("http://", "https://")):
            file = self.resources.enter_context(RemoteFile(source))
            return file, file.size
        path = source_path(source)
        try:
            return self.resources.enter_context(open_regular(path)), path.stat().st_size
        except OSError as error:
            what = "it is a folder" if path.is_dir() else error.strerror
            raise PreparedDataError(
                f"cannot read {path}: {what}. Fix: name the release's archive, its URL, or - for standard input"
            ) from error

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *error: object) -> None:
        self.resources.close()

    def read(self, size: int) -> bytes:
        try:
            data: bytes = self.file.read(size)
        except OSError as error:
            raise PreparedDataError(f"cannot read {_shown(self.source)}: {error.strerror or error}") from error
        self.position += len(data)
        self.progress.update(self.bar, advance=len(data))
        return data


@contextmanager
def _reading(source: str, stream: _Stream) -> Iterator[None]:
    """Explain errors of the archive. None of them stays an `OSError`, which would be taken for one of the output."""
    try:
        yield
    except EOFError as error:
        raise PreparedDataError(
            f"{_shown(source)} is truncated: it ends after {stream.position:,} bytes. Finished files are kept. Fix: "
            "complete the archive, and run again"
        ) from error
    except (gzip.BadGzipFile, zlib.error, tarfile.TarError) as error:
        what = "damaged" if stream.position > BLOCK else "damaged, or no gzipped tar archive"
        raise PreparedDataError(
            f"{_shown(source)} is {what} ({error}), before byte {stream.position:,}. Fix: fetch the release again"
        ) from error


def _shown(source: str) -> str:
    return "standard input" if source == STDIN else printable(source)


def _write(blocks: Iterator[bytes], path: Path) -> str:
    """Write a file under a temporary name, then rename it; return its SHA-256."""
    partial = path.with_name(path.name + ".partial")
    digest = hashlib.sha256()
    try:
        with partial.open("wb") as file:
            for block in blocks:
                file.write(block)
                digest.update(block)
        os.replace(partial, path)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)
    return digest.hexdigest()


def _write_sums(sums: dict[str, str], folder: Path) -> None:
    """Write checksums as `sha256sum --check` reads them."""
    content = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())).encode()
    _write(iter([content]), folder / SUMS)
