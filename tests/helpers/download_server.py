"""A server of this process that cuts off, ignores ranges or has nothing, as it is told."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

CONTENT = np.random.default_rng(0).bytes(3000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Gives `content` whatever the path.

    Attributes:
        cuts: for each request, after how many bytes it is cut off; whole ones follow.
        ranges: whether a Range is heeded.
        status: of an error that is the answer to all requests.
        asked: the Range of each request.
        sent: bytes of each answer.
        waits: half of the first answer waits for a second request, or for half a second if none comes.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.cuts: Iterator[int] = iter(())
        self.ranges = True
        self.status: int | None = None
        self.asked: list[str | None] = []
        self.sent: list[int] = []
        self.waits = False
        self.second = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        if len(server.asked) > 1:
            server.second.set()
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges else 0
        if server.status or (start and start >= len(server.content)):
            self.send_error(server.status or 416)
            return
        rest = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        part = rest[: next(server.cuts, len(rest))]
        server.sent.append(len(part))
        half = len(part) // 2
        self.wfile.write(part[:half])
        if server.waits:
            server.second.wait(timeout=0.5)
        self.wfile.write(part[half:])

    def log_message(self, *args: object) -> None:
        """Nothing."""


def visible(folder):
    """What is there but for lock files."""
    return sorted(folder.glob("[!.]*"))
