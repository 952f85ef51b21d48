"""A folder behind a local HTTP server that knows ranges, and that can go away, refuse, or be slow."""

import re
import threading
import time
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class ServedFolder:
    """What a server does, to be changed while it runs.

    Attributes:
        folder: What is served.
        address: Of the folder, without a slash at its end.
        requests: Method and path of every request so far.
        fail_after: Number of requests after which all fail; None for never.
        status: What they fail with.
        missing: Answer to what is not there; some servers deny it.
        wait: Seconds before each answer.
        ranges: Whether parts of files are given.
        stated: Whether ETag and Last-Modified are.
    """

    def __init__(self, folder):
        self.folder, self.address, self.requests = Path(folder), "", []
        self.fail_after, self.status, self.missing, self.wait = None, 404, 404, 0.0
        self.ranges = self.stated = True

    def answer(self, request):
        self.requests.append((request.command, request.path))
        time.sleep(self.wait)
        path = self.folder / request.path.partition("?")[0].lstrip("/")
        failed = self.fail_after is not None and len(self.requests) > self.fail_after
        if failed or not path.is_file():
            request.send_response(self.status if failed else self.missing)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        size, status = path.stat().st_size, 200
        start, stop = 0, size
        asked = _RANGE.fullmatch(request.headers.get("Range", ""))
        if asked and self.ranges:
            first, last = asked.groups()
            start = int(first) if first else max(0, size - int(last))
            stop = min(size, int(last) + 1) if first and last else size
            status = 206
        request.send_response(status)
        if status == 206:
            request.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        request.send_header("Content-Length", str(stop - start))
        if self.stated:
            request.send_header("ETag", f'"{path.stat().st_mtime_ns:x}-{size:x}"')
            request.send_header("Last-Modified", formatdate(path.stat().st_mtime, usegmt=True))
        request.end_headers()
        if request.command == "GET":
            with path.open("rb") as file:
                file.seek(start)
                request.wfile.write(file.read(stop - start))


@contextmanager
def served(folder):
    """Return a context that yields a :class:`ServedFolder` at a port of this machine."""
    state = ServedFolder(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            try:
                state.answer(self)
            except (BrokenPipeError, ConnectionResetError):  # of a client that did not wait
                self.close_connection = True

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
