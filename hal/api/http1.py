"""Just enough HTTP/1.1 for a client that asks one server: a connection answers in a fraction of a millisecond.

A general client library takes longer for one request than the broker does for a claim with its commit.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import httptools

from hal.errors import BrokerError, UsageError
from hal.interfaces.deadline import Deadline

_CHUNK = 1 << 16
LONGEST_PATH_BYTES = 107
"""``sun_path`` of unix(7) has 108 bytes, the last a zero."""


class Address:
    """Where a server is: ``unix:/PATH``, a path, or ``http(s)://HOST:PORT``; and as whom it is asked.

    ``certificate`` are the files of a client certificate and its key, ``ca`` the authority that signed the server's.
    """

    def __init__(
        self,
        address: str | os.PathLike[str],
        *,
        token: str | None = None,
        certificate: tuple[str, str] | None = None,
        ca: str | None = None,
    ) -> None:
        self.text = os.fspath(address)
        self.unix: Path | None = None
        self.tls: ssl.SSLContext | None = None
        self.host, self.port = "hal", 0
        if not self.text.startswith(("http://", "https://")):
            self.unix = Path(self.text.removeprefix("unix:"))
        else:
            parts = urlsplit(self.text)
            try:
                self.host, self.port = parts.hostname or "", parts.port or 0
            except ValueError:
                self.host = ""
            if not self.host or not self.port:
                raise UsageError(f"{self.text!r} is no address", during="connect", hint="https://HOST:PORT")
            if parts.scheme == "https":
                self.tls = ssl.create_default_context(cafile=ca)
                self.tls.minimum_version = ssl.TLSVersion.TLSv1_3
                if certificate is not None:
                    self.tls.load_cert_chain(*certificate)
        if token is not None and not (token.isascii() and token.isprintable()):
            raise UsageError("the token holds odd characters", during="connect", hint="hal token make")
        shown = f"authorization: Bearer {token}\r\n" if token is not None else ""
        self._fixed = f" HTTP/1.1\r\nhost: {self.host}\r\n{shown}".encode()

    def head(self, method: str, path: str, query: dict[str, str], body: bytes | None) -> bytes:
        """Return a request as it is sent."""
        target = f"{path}?{urlencode(query)}" if query else path
        end = b"\r\n" if body is None else b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        return b"".join((method.encode(), b" ", target.encode("ascii"), self._fixed, end, body or b""))


class Response:
    """An answer as far as it was received. ``started`` tells whether there was anything at all."""

    def __init__(self) -> None:
        self.status = 0
        self.media = ""
        self.started = self.headed = self.complete = self._kept_alive = False
        self._parts: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Take what was received; raises ``BrokerError`` for what is no HTTP."""
        self.started = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise BrokerError(
                f"that is no HTTP: {error}", during="ask", hint="is it hal that listens there?"
            ) from error

    def take(self) -> bytes:
        """Return what there is of the body since the last call."""
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @property
    def flows(self) -> bool:
        """Whether its body may be taken as it comes: a problem is worth nothing until it is whole."""
        return self.headed and (self.status == 200 or self.complete)

    @property
    def reusable(self) -> bool:
        """Whether the connection may be asked again."""
        return self.complete and self._kept_alive

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        if name.lower() == b"content-type":
            self.media = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """See httptools."""
        self.status = self._parser.get_status_code()
        self.headed = True

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._parts.append(body)

    def on_message_complete(self) -> None:
        """See httptools. What was said of the connection is known here, and forgotten when this returns."""
        self.complete = True
        self._kept_alive = bool(self._parser.should_keep_alive())


class Connections:
    """Connections to one server; those that nobody uses wait to be used again. Thread-safe."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._idle: deque[socket.socket] = deque(maxlen=64)
        self._closed = False

    def ask(self, request: bytes, deadline: Deadline) -> Response:
        """Send a request and return the whole answer.

        Raises ``TimeoutError`` at the deadline, ``ConnectionError`` if there is nobody or the line is cut.
        """
        end = self._take(deadline)
        response = Response()
        try:
            end.settimeout(deadline.timeout)
            end.sendall(request)
            while not response.complete:
                end.settimeout(max(0.001, deadline.remaining_seconds))
                response.feed(_some(end.recv(_CHUNK)))
        except BaseException:
            end.close()
            raise
        self._give(end, response)
        return response

    def stream(self, request: bytes, deadline: Deadline, silent_seconds: float) -> Iterator[tuple[Response, bytes]]:
        """Send a request and yield the answer as it comes; ``TimeoutError`` after so long a silence."""
        end = self._take(deadline)
        response = Response()
        try:
            end.settimeout(silent_seconds)
            end.sendall(request)
            while not response.complete:
                response.feed(_some(end.recv(_CHUNK)))
                if response.flows:
                    yield response, response.take()
        finally:
            end.close()

    def _take(self, deadline: Deadline) -> socket.socket:
        if self._closed:
            raise UsageError("the client was closed", during="ask", hint="make a new one")
        while True:
            try:
                end = self._idle.pop()
            except IndexError:
                return _connect(self._address, deadline)
            try:
                end.setblocking(False)
                end.recv(1, socket.MSG_PEEK)  # the server has closed it, or says something that nobody asked
            except (BlockingIOError, ssl.SSLWantReadError):
                return end
            except (OSError, ValueError):
                pass
            end.close()

    def _give(self, end: socket.socket, response: Response) -> None:
        if response.reusable and not self._closed and len(self._idle) < 64:
            self._idle.append(end)
        else:
            end.close()

    def close(self) -> None:
        """Close the connections that nobody uses."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()


def _some(data: bytes) -> bytes:
    if not data:
        raise ConnectionResetError("the server closed the connection")
    return data


def _connect(address: Address, deadline: Deadline) -> socket.socket:
    seconds = max(0.001, deadline.remaining_seconds)
    if address.unix is None:
        end = socket.create_connection((address.host, address.port), seconds)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if address.tls is None:
            return end
        try:
            return address.tls.wrap_socket(end, server_hostname=address.host)
        except BaseException:
            end.close()
            raise
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        end.settimeout(seconds)
        with ShortPath(address.unix) as short:
            end.connect(short)
    except BaseException:
        end.close()
        raise
    return end


class ShortPath:
    """Gives a path for the same socket that fits into an address, however deep its folder lies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder = -1

    def __enter__(self) -> str:
        if len(os.fsencode(self._path)) <= LONGEST_PATH_BYTES:
            return str(self._path)
        self._folder = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._folder}/{self._path.name}"

    def __exit__(self, *_: object) -> None:
        if self._folder >= 0:
            os.close(self._folder)
