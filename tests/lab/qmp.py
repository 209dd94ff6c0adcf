"""A client of QEMU's machine protocol (docs/interop/qmp-spec): one command at a time, events kept until asked for."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class QmpError(Exception):
    """QEMU refused a command, or does not answer."""


class Qmp:
    """A connection; connecting waits for the socket to be there."""

    def __init__(self, path: Path, timeout: float = 10.0) -> None:
        self._end = time.monotonic() + timeout
        self._socket = self._connect(str(path))
        self._rest = b""
        self._events: list[dict[str, Any]] = []
        self._next()  # the greeting
        self.execute("qmp_capabilities")

    def _connect(self, path: str) -> socket.socket:
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(path)
                return connection
            except OSError as error:
                connection.close()
                if time.monotonic() > self._end:
                    raise QmpError(f"no QEMU at {path}: {error}") from error
                time.sleep(0.01)

    def execute(self, command: str, arguments: Mapping[str, object] | None = None, timeout: float = 10.0) -> Any:
        """Run a command and return its result."""
        self._end = time.monotonic() + timeout
        request: dict[str, object] = {"execute": command}
        if arguments:
            request["arguments"] = dict(arguments)
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            answer = self._next()
            if "event" in answer:
                self._events.append(answer)
            elif "error" in answer:
                raise QmpError(f"{command}: {answer['error']['desc']}")
            else:
                return answer.get("return")

    def monitor(self, line: str) -> str:
        """Run a line of the human monitor, for what QMP has no command; what it says is an error."""
        said = str(self.execute("human-monitor-command", {"command-line": line})).strip()
        if said and not said.startswith("OK"):
            raise QmpError(f"{line}: {said}")
        return said

    def wait_event(self, name: str, timeout: float = 20.0, **data: object) -> dict[str, Any]:
        """Wait for an event whose data holds ``data``."""
        self._end = time.monotonic() + timeout
        while True:
            for index, event in enumerate(self._events):
                held = event.get("data", {})
                if event["event"] == name and all(held.get(key) == value for key, value in data.items()):
                    return self._events.pop(index)
            answer = self._next(f"the event {name}")
            if "event" in answer:
                self._events.append(answer)

    def close(self) -> None:
        """Hang up. Idempotent."""
        self._socket.close()

    def _next(self, what: str = "an answer") -> dict[str, Any]:
        while b"\n" not in self._rest:
            left = self._end - time.monotonic()
            if left <= 0:
                raise QmpError(f"QEMU did not send {what} in time")
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                continue
            if not data:
                raise QmpError("QEMU has ended")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message
