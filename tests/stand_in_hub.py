"""A small hub on this machine: enough of the Hugging Face hub's interface to fetch one model from it."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class StandInHub:
    """Serves the model `name` with these files (name to bytes) while a `with` block runs.

    `behaviour` may be changed at any time: "well", "hang" (accept and say nothing), "hang in files" (only
    the list of files is answered), "close" (hang up without an answer), "fail" (status 500), "gated".
    `requests` lists what was asked for.
    """

    def __init__(self, name: str, files: dict[str, bytes]):
        self.name = name
        self.files = files
        self.behaviour = "well"
        self.requests: list[str] = []
        self.released = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "StandInHub":
        threading.Thread(target=self.server.serve_forever, args=[0.01], daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def _handler(hub):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                hub.answer(self)

            def do_HEAD(self):
                hub.answer(self)

            def log_message(self, *arguments):
                pass

        return Handler

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.split("?")[0]
        self.requests.append(f"{request.command} {path}")
        about_files = path.startswith(f"/{self.name}/resolve/")
        if self.behaviour == "hang" or (self.behaviour == "hang in files" and about_files):
            self.released.wait(30)
        elif self.behaviour == "close":
            request.close_connection = True
        elif self.behaviour == "fail":
            send(request, 500, b"out of order")
        elif self.behaviour == "gated":
            send(request, 403, b"", {"X-Error-Code": "GatedRepo"})
        elif about_files:
            self._send_file(request, path.rsplit("/", 1)[1])
        elif path in (f"/api/models/{self.name}", f"/api/models/{self.name}/revision/main"):
            siblings = [{"rfilename": name} for name in self.files]
            description = {"id": self.name, "sha": COMMIT, "siblings": siblings}
            send(request, 200, json.dumps(description).encode(), {"Content-Type": "application/json"})
        elif path.startswith(f"/api/models/{self.name}/"):
            send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            send(request, 404, b"", {"X-Error-Code": "RepoNotFound"})

    def _send_file(self, request: BaseHTTPRequestHandler, name: str) -> None:
        if name not in self.files:
            send(request, 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        content = self.files[name]
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        send(request, 200, content, {"ETag": etag, "X-Repo-Commit": COMMIT})


def send(
    request: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str] | None = None
) -> None:
    request.send_response(status)
    for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command == "GET":
        request.wfile.write(content)
