"""What VS Code says to a debugger: a client of the Debug Adapter Protocol, which is JSON with a length before it.

(microsoft.github.io/debug-adapter-protocol, "Base Protocol".)
"""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any


class DapSession:
    """A program under debugpy, which waits until the client has set its breakpoints.

    `transcript` holds what was said, a line each: what the client asked (->) and what it was told (<-).
    """

    def __init__(self, arguments: Sequence[str], environment: dict[str, str]):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-Xfrozen_modules=off", "-m", "debugpy"),
                *("--listen", f"127.0.0.1:{port}", "--wait-for-client"),
                *arguments,
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.transcript: list[str] = []
        self.sequence = 0
        self.received: list[dict] = []
        self.socket = self._connect(port)
        self.stream = self.socket.makefile("rb")
        self.request(
            "initialize", adapterID="debugpy", clientID="test", linesStartAt1=True, pathFormat="path"
        )
        self._send("attach", justMyCode=False)
        self.event("initialized")

    def _connect(self, port: int) -> socket.socket:
        deadline = time.monotonic() + 60
        while True:
            try:
                return socket.create_connection(("127.0.0.1", port), timeout=240)
            except ConnectionRefusedError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.1)

    def request(self, command: str, **arguments: Any) -> dict:
        """The body of the answer."""
        number = self._send(command, **arguments)
        message = self._wait(lambda m: m["type"] == "response" and m["request_seq"] == number)
        assert message["success"], message
        return message.get("body", {})

    def event(self, name: str) -> dict:
        """The body of the next event of this name."""
        message = self._wait(lambda m: m["type"] == "event" and m["event"] == name)
        return message.get("body", {})

    def break_at(self, path: str, line: int, **condition: str) -> None:
        """One breakpoint in a file, and then let the program run."""
        breakpoints = [{"line": line, **condition}]
        set_ = self.request("setBreakpoints", source={"path": path}, breakpoints=breakpoints)
        assert set_["breakpoints"][0]["verified"], set_
        self.request("configurationDone")

    def stopped(self) -> tuple[str, list[dict]]:
        """Wait until the program stops: the name of its thread, and its frames, the innermost first."""
        thread = self.event("stopped")["threadId"]
        names = {each["id"]: each["name"] for each in self.request("threads")["threads"]}
        return names[thread], self.request("stackTrace", threadId=thread)["stackFrames"]

    def variables(self, frame: dict) -> dict[str, str]:
        """The local variables of a frame, as the Variables pane shows them."""
        scopes = self.request("scopes", frameId=frame["id"])["scopes"]
        found = self.request("variables", variablesReference=scopes[0]["variablesReference"])["variables"]
        return {each["name"]: each["value"] for each in found}

    def evaluate(self, expression: str, frame: dict) -> str:
        """What the debug console says."""
        return self.request("evaluate", expression=expression, frameId=frame["id"], context="repl")["result"]

    def close(self) -> None:
        """Let the program run to its end without breakpoints, or end it."""
        self.request("disconnect", terminateDebuggee=True)
        self.socket.close()
        self.process.kill()
        self.process.communicate()

    def _send(self, command: str, **arguments: Any) -> int:
        self.sequence += 1
        message = {"seq": self.sequence, "type": "request", "command": command, "arguments": arguments}
        content = json.dumps(message).encode()
        self.socket.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(content), content))
        self.transcript.append(f"-> {command} {json.dumps(arguments)}")
        return self.sequence

    def _wait(self, wanted) -> dict:
        while True:
            for message in self.received:
                if wanted(message):
                    self.received.remove(message)
                    return message
            self.received.append(self._receive())

    def _receive(self) -> dict:
        length = 0
        while (line := self.stream.readline().strip()) or not length:
            name, _, value = line.partition(b":")
            length = int(value) if name == b"Content-Length" else length
        message = json.loads(self.stream.read(length))
        said = message.get("event") or message.get("command")
        self.transcript.append(f"<- {said} {json.dumps(message.get('body', {}))}")
        return message
