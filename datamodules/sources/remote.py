"""Read a file behind a URL from start to end, across lost connections."""

import http.client
import io
import time
import urllib.error
import urllib.request
from typing import Any

from datamodules.files import PreparedDataError
from datamodules.sources import download


class RemoteFile(io.RawIOBase):
    """A public file, read once and in order. Nothing is kept of it on disk.

    A lost connection is opened again at the first byte that is missing.

    Args:
        url: public address.

    Attributes:
        size: bytes in all; None if the server does not tell.
        position: bytes that have been read.

    Raises:
        PreparedDataError: without a network, or if the server cannot continue in the middle of the file.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.position = 0
        self.size: int | None = None
        self.response: Any = None
        self.readinto(bytearray(0))  # connect, so that a wrong address is found at once

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        failures = 0
        while True:
            try:
                if self.response is None:
                    self._connect()
                count = self.response.readinto(buffer)
                if len(buffer) and not count and self.position < (self.size or 0):
                    raise ConnectionError("the connection was cut off")
                self.position += count
                return count
            except (OSError, http.client.HTTPException) as error:
                self.response = None
                failures += 1
                final = isinstance(error, urllib.error.HTTPError) and error.code in download.FINAL
                if final or failures == download.ATTEMPTS:
                    raise PreparedDataError(
                        f"cannot read {self.url}: {getattr(error, 'reason', error)}, after {self.position:,} bytes. "
                        "Fix: run again, or download the archive with a program that resumes, and name that file"
                    ) from error
                time.sleep(download.PAUSE * failures)

    def _connect(self) -> None:
        headers = {"Range": f"bytes={self.position}-"} if self.position else {}
        self.response = urllib.request.urlopen(
            urllib.request.Request(self.url, headers=headers), timeout=download.TIMEOUT
        )
        if self.position and self.response.status != http.client.PARTIAL_CONTENT:
            self.response.close()
            raise PreparedDataError(
                f"{self.url} was cut off after {self.position:,} bytes, and its server cannot send the rest. Fix: "
                "download the archive first, and name that file"
            )
        if self.response.length is not None:
            self.size = self.position + self.response.length

    def close(self) -> None:
        if self.response is not None:
            self.response.close()
        super().close()
