"""Download a file once, with resume, checksum and progress bar."""

import errno
import hashlib
import http.client
import time
import urllib.error
import urllib.request
from pathlib import Path

from rich.progress import DownloadColumn

from datamodules.examples import progress_bar
from datamodules.files import PreparedDataError, waiting_lock

ATTEMPTS = 5  # that bring nothing, in a row
TIMEOUT = 60  # seconds without a byte
BLOCK = 1 << 18
PAUSE = 2  # seconds; longer after each attempt that brings nothing
FINAL = (401, 403, 404, 410, 416)  # answers that asking again will not change


def fetch(url: str, path: Path, algorithm: str, digest: str) -> Path:
    """The file behind `url`, at `path`, with this checksum.

    Received bytes are kept in `<path>.part`, and the next attempt or run requests the rest. A file with a wrong
    checksum is kept as `<path>.wrong`.

    Args:
        url: public address.
        path: where to put it; nothing is fetched when it is there with the right checksum.
        algorithm, digest: the checksum and its algorithm, such as `sha256`.

    Raises:
        PreparedDataError: without a network, or for a wrong checksum, saying what was kept and what to do.
    """
    if path.exists():
        _check(path, path, algorithm, digest)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with waiting_lock(path.with_name(f".{path.name}.lock")):  # another setting of the task may fetch it too
        if not path.exists():
            part = path.with_name(path.name + ".part")
            _fetch_all(url, path, part)
            _check(part, path, algorithm, digest)
            part.rename(path)
    return path


def _fetch_all(url: str, path: Path, part: Path) -> None:
    """Try until `part` is whole, as long as it grows."""
    failures = 0
    longest = _size(part)
    while failures < ATTEMPTS:
        try:
            return _fetch_rest(url, part)
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
            if _is_local(error):
                raise
            failures = failures + 1 if _size(part) <= longest else 0
            longest = max(longest, _size(part))
            reason = error
            if isinstance(error, urllib.error.HTTPError) and error.code in FINAL:
                break
            time.sleep(PAUSE * failures)
    arrived = _size(part)
    kept = f" The {arrived:,} bytes that arrived are kept; the next run continues from there." if arrived else ""
    raise PreparedDataError(
        f"cannot fetch {url}: {getattr(reason, 'reason', reason)}.{kept} Fix: try again, or put the file there "
        f"yourself: {path}"
    ) from reason


def _fetch_rest(url: str, part: Path) -> None:
    """Append what is missing to `part`.

    Raises:
        OSError, http.client.HTTPException: when it was cut off.
    """
    start = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if start and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is missing; the checksum tells whether that is so
        raise
    with response, progress_bar(DownloadColumn()) as progress:
        resumed = response.status == http.client.PARTIAL_CONTENT
        start = start if resumed else 0  # a server that cannot resume sends it all
        rest = response.length
        bar = progress.add_task(f"Fetching {part.stem}", total=None if rest is None else start + rest, completed=start)
        with part.open("ab" if resumed else "wb") as file:
            while block := response.read(BLOCK):
                file.write(block)
                progress.update(bar, advance=len(block))
        if rest is not None and _size(part) < start + rest:
            raise ConnectionError(f"cut off after {_size(part):,} of {start + rest:,} bytes")


def _check(found: Path, path: Path, algorithm: str, digest: str) -> None:
    with found.open("rb") as file:
        actual = hashlib.file_digest(file, algorithm).hexdigest()
    if actual != digest:
        aside = found.rename(path.with_name(path.name + ".wrong"))
        raise PreparedDataError(
            f"{path.name} has the {algorithm} {actual}, expected {digest}; it is kept aside as {aside}. Fix: run "
            "the command again to fetch it again, or set data.source to a copy that you trust."
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_local(error: BaseException) -> bool:
    """Return whether this machine's disk failed."""
    if isinstance(error, urllib.error.URLError) or not isinstance(error, OSError):
        return False
    return error.filename is not None or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
