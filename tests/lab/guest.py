"""Speaks to the agent in the guest: runs programs there, follows what they print, moves small files."""

from __future__ import annotations

import base64
import json
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_GRACE_SECONDS = 15.0


class GuestError(Exception):
    """The guest, or a program in it, did not do what it should."""


@dataclass(frozen=True)
class Ended:
    """A program that ran to its end."""

    argv: tuple[str, ...]
    code: int
    out: str
    err: str
    seconds: float

    @property
    def json(self) -> Any:
        """What it printed, as JSON."""
        try:
            return json.loads(self.out)
        except ValueError as error:
            raise GuestError(
                f"{' '.join(self.argv)} printed no JSON: {self.out[:200]!r} {self.err[-200:]!r}"
            ) from error


class Running:
    """A program that runs; what it prints is read as it comes."""

    def __init__(self, guest: Guest, number: int, argv: tuple[str, ...], timeout: float) -> None:
        self._guest, self._number, self._argv = guest, number, argv
        self._end = time.monotonic() + timeout + _GRACE_SECONDS
        self._inbox = guest.inbox(number)
        self._done: dict[str, Any] | None = None
        self._seen = 0
        self.out = ""
        self.err = ""

    def wait_line(self, wanted: Callable[[str], bool], timeout: float) -> str:
        """Return the next line of its output that ``wanted`` accepts; earlier calls have used up the lines before."""
        end = time.monotonic() + timeout
        while True:
            whole, newline, _ = self.out[self._seen :].partition("\n")
            if newline:
                self._seen += len(whole) + 1
                if wanted(whole):
                    return whole
                continue
            if self._done is not None:
                raise GuestError(f"{self._name} ended with {self._done['exit']} first: {self.err[-2000:]}")
            if not self._take(end):
                raise GuestError(
                    f"{self._name} did not print it in {timeout:g} s; its output ends {self.out[-1500:]!r}"
                )

    def wait(self) -> Ended:
        """Wait for its end, which comes with its own time limit at the latest."""
        while self._done is None:
            if not self._take(self._end):
                raise GuestError(f"{self._name}: the guest stopped answering")
        if self._done.get("error"):
            raise GuestError(f"{self._name}: {self._done['error']}")
        if self._done["late"]:
            said = self.out[-3000:] + self.err[-3000:]
            raise GuestError(f"{self._name} was still running after {self._done['seconds']:.0f} s\n{said}")
        return Ended(self._argv, self._done["exit"], self.out, self.err, self._done["seconds"])

    def stop(self) -> Ended:
        """Interrupt it and wait for its end."""
        self._guest.ask("kill", of=self._number, signal=int(signal.SIGINT))
        return self.wait()

    @property
    def _name(self) -> str:
        return " ".join(self._argv)[:200]

    def _take(self, end: float) -> bool:
        try:
            message = self._inbox.get(timeout=max(end - time.monotonic(), 0.001))
        except queue.Empty:
            return False
        self.out += message.get("out", "")
        self.err += message.get("err", "")
        if "exit" in message or "error" in message:
            self._done = message
        return True


class Guest:
    """The agent of one boot."""

    def __init__(self, path: Path, environ: Mapping[str, str], folder: str, boot_timeout: float = 120.0) -> None:
        self.environ = dict(environ)
        self.folder = folder
        self._count = 0
        self._inboxes: dict[int, queue.Queue[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._ready: queue.Queue[dict[str, Any]] = queue.Queue()
        self._socket = _connected(path, boot_timeout)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            message = self._ready.get(timeout=boot_timeout)
        except queue.Empty:
            raise GuestError(f"the guest was not up after {boot_timeout:g} s") from None
        if "error" in message:
            raise GuestError(str(message["error"]))
        self.uptime = float(message["uptime"])

    def run(
        self, *argv: str | Path, timeout: float = 30.0, check: bool = True, environ: Mapping[str, str] | None = None
    ) -> Ended:
        """Run a program to its end; with ``check`` a status other than 0 is an error that shows its last words."""
        ended = self.start(*argv, timeout=timeout, environ=environ).wait()
        if check and ended.code:
            said = (ended.out[-3000:] + ended.err[-3000:]).strip()
            raise GuestError(f"{' '.join(ended.argv)[:200]} ended with {ended.code}: {said}")
        return ended

    def shell(self, script: str, timeout: float = 30.0) -> str:
        """Run lines of shell that stop at the first failure; returns what they print."""
        return self.run("/bin/sh", "-euc", script, timeout=timeout).out

    def start(self, *argv: str | Path, timeout: float = 30.0, environ: Mapping[str, str] | None = None) -> Running:
        """Start a program that may run for so long."""
        words = tuple(map(str, argv))
        number = self._number()
        running = Running(self, number, words, timeout)
        merged = {**self.environ, **(environ or {})}
        self._send({"id": number, "do": "run", "argv": words, "env": merged, "cwd": self.folder, "timeout": timeout})
        return running

    def read(self, path: str) -> bytes:
        """Return a file's contents."""
        return base64.b64decode(self.ask("read", path=path)["data"])

    def text(self, path: str) -> str:
        """Return a file's text without the end of line."""
        return self.read(path).decode().strip()

    def write(self, path: str, data: str) -> None:
        """Write a file with one call, as sysfs wants it."""
        self.ask("write", path=path, data=base64.b64encode(data.encode()).decode())

    def ask(self, verb: str, timeout: float = 10.0, **arguments: object) -> dict[str, Any]:
        """Send what has one answer and wait for it."""
        number = self._number()
        inbox = self.inbox(number)
        self._send({"id": number, "do": verb, **arguments})
        try:
            answer = inbox.get(timeout=timeout)
        except queue.Empty:
            raise GuestError(f"{verb} {arguments}: the guest stopped answering") from None
        if "error" in answer:
            raise GuestError(f"{verb} {arguments.get('path', '')}: {answer['error']}")
        return answer

    def inbox(self, number: int) -> queue.Queue[dict[str, Any]]:
        """Return where the messages about one request arrive."""
        with self._lock:
            return self._inboxes.setdefault(number, queue.Queue())

    def close(self) -> None:
        """Hang up. Idempotent."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)  # closing alone would not wake who reads from it
        except OSError:
            pass
        self._socket.close()
        self._reader.join(_GRACE_SECONDS)

    def _number(self) -> int:
        with self._lock:
            self._count += 1
            return self._count

    def _send(self, message: dict[str, object]) -> None:
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise GuestError(f"the guest is gone: {error}") from error

    def _read(self) -> None:
        rest = b""
        while True:
            try:
                data = self._socket.recv(1 << 20)
            except OSError:
                data = b""
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                message = json.loads(line)
                (self._ready if "ready" in message else self.inbox(message["id"])).put(message)
        gone = {"error": "the guest has ended", "exit": -1, "late": False, "seconds": 0.0}
        self._ready.put(gone)
        with self._lock:
            for inbox in self._inboxes.values():
                inbox.put(gone)


def _connected(path: Path, timeout: float) -> socket.socket:
    end = time.monotonic() + timeout
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
            return connection
        except OSError as error:
            connection.close()
            if time.monotonic() > end:
                raise GuestError(f"no port of the guest at {path}: {error}") from error
            time.sleep(0.01)
