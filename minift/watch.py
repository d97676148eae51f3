"""The report of a training that goes on, in a browser: served on this machine alone, by the process that trains."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from minift.errors import InputError
from minift.page import as_json
from minift.report import Report

HOST = "127.0.0.1"
LAST_SECONDS = 3.0
"""How long a process that is done waits for its readers to ask once more; they ask every second (`live.js`)."""


@contextmanager
def watching(report: Report, port: int) -> Iterator[None]:
    """Inside this block the report is served on `port`, or on a free one for 0; standard error says where.

    Raises InputError where the port cannot be had.
    """
    # Here and not above: few trainings are watched, and all others would import HTTP and TLS for nothing.
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    asked = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # Another name for this address would be a foreign page's way to read the answer (DNS rebinding).
            if (self.headers.get("Host") or "").rpartition(":")[0] not in (HOST, "localhost"):
                self.send_error(403)
            elif self.path == "/":
                self.answer(report.html("live"), "text/html")
            elif self.path == "/data.json":
                self.answer(as_json(report.data()), "application/json")
                asked.set()
            else:
                self.send_error(404)

        def answer(self, text: str, kind: str) -> None:
            body = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args) -> None:
            """Nothing: the terminal belongs to the progress bar."""

    try:
        server = ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise InputError(f"port {port} of {HOST} cannot be used for --watch: {error.strerror}") from None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"watch it at http://{HOST}:{server.server_port}/", file=sys.stderr, flush=True)
    try:
        yield
        if asked.is_set():
            asked.clear()
            asked.wait(LAST_SECONDS)
    finally:
        server.shutdown()
        server.server_close()
