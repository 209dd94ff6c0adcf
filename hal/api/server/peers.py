"""The connection's other end: who it is by the kernel's or the certificate's word, and how long it may dawdle."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hal.api.server.config import Limits
from hal.api.wire import PROBLEM_MEDIA_TYPE, PROBLEM_TYPE, Problem

_CREDENTIALS = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid


class Peer(msgspec.Struct, frozen=True):
    """Who is at the other end. ``uid`` on a Unix socket, ``subject`` of a verified client certificate on TLS."""

    uid: int | None = None
    gid: int | None = None
    pid: int | None = None
    subject: str | None = None
    uris: tuple[str, ...] = ()
    secure: bool = False


def peer_of(transport: asyncio.BaseTransport) -> Peer:
    """Return the peer of a connection, as it was when it connected (SO_PEERCRED of unix(7))."""
    end = transport.get_extra_info("socket")
    if end is not None and end.family == socket.AF_UNIX:
        raw = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, gid = _CREDENTIALS.unpack(raw)
        return Peer(uid=uid, gid=gid, pid=pid)
    tls = transport.get_extra_info("ssl_object")
    if tls is None:
        return Peer()
    certificate: dict[str, Any] = tls.getpeercert() or {}
    subject = [value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"]
    uris = tuple(value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI")
    return Peer(subject=subject[0] if subject else None, uris=uris, secure=True)


class OneWrite:
    """A transport that sends at once what is written in one turn of the loop: the head of an answer and its body.

    Two packets cost two calls of the kernel here and wake the reader twice.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        """All else is the transport's."""
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send it before the loop looks for anything else."""
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)

    def _flush(self) -> None:
        held, self._held = self._held, []
        if held:
            self._transport.write(held[0] if len(held) == 1 else b"".join(held))

    def get_write_buffer_size(self) -> int:
        """What nobody has read yet, the part that waits here included."""
        return self._transport.get_write_buffer_size() + sum(map(len, self._held))

    def close(self) -> None:
        """Send what was written, and close."""
        self._flush()
        self._transport.close()


def protocol(limits: Limits) -> type[HttpToolsProtocol]:
    """Return uvicorn's protocol with the peer in each request's scope, and with deadlines for slow clients.

    A request's head must be there within ``header_seconds`` and ``most_header_bytes``; so many connections as
    ``connections_per_user`` may be open at a time for one user, and ``connections`` in all.
    """
    open_by_user: Counter[int | None] = Counter()

    class PeerProtocol(HttpToolsProtocol):
        _peer = Peer()
        _counted = False
        _head_timer: asyncio.TimerHandle | None = None
        _head_bytes = 0
        _in_head = True

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(OneWrite(transport, self.loop))  # type: ignore[arg-type]
            self._peer = peer_of(transport)
            open_by_user[self._peer.uid] += 1
            self._counted = True
            mine = open_by_user[self._peer.uid]
            if open_by_user.total() > limits.connections or mine > limits.connections_per_user:
                self._refuse(503, "too many connections are open", "close some, and try again")
                return
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._counted:
                open_by_user[self._peer.uid] -= 1
                if not open_by_user[self._peer.uid]:
                    del open_by_user[self._peer.uid]
            self._end_head()
            super().connection_lost(exc)

        def _await_head(self) -> None:
            self._head_timer = self.loop.call_later(limits.header_seconds, self._late)

        def _end_head(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _late(self) -> None:
            if not self.transport.is_closing():
                self._refuse(408, f"no whole request within {limits.header_seconds:g} s", "send it sooner")

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            if self._in_head:
                self._head_bytes += len(data)
            super().data_received(data)
            if not self._in_head or not self._head_bytes or self.transport.is_closing():
                return
            if self._head_bytes > limits.most_header_bytes:
                self._refuse(431, f"the head is longer than {limits.most_header_bytes} bytes", "fewer headers")
            elif self._head_timer is None:  # most heads come whole, and need none
                self._await_head()

        def on_message_begin(self) -> None:
            self._in_head = True
            self._head_bytes = max(1, self._head_bytes)  # of the next of several that came at once we know no more
            super().on_message_begin()
            self.scope["hal.peer"] = self._peer  # type: ignore[typeddict-unknown-key]

        def on_headers_complete(self) -> None:
            self._in_head = False
            self._end_head()
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._in_head = True
            self._head_bytes = 0
            self.scope["hal.whole"] = True  # type: ignore[typeddict-unknown-key]
            super().on_message_complete()

        def timeout_keep_alive_handler(self) -> None:
            # What was not read by now never will be: closing would wait for it.
            if self.transport.get_write_buffer_size() and not self.transport.is_closing():
                self.transport.abort()
                return
            super().timeout_keep_alive_handler()

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, "this is no HTTP request", "HTTP/1.1, as in /openapi.json")

        def _refuse(self, status: int, detail: str, hint: str) -> None:
            self._end_head()
            kind = "BadRequest" if status < 500 else "Limited"
            problem = Problem(
                type=PROBLEM_TYPE + kind, title="Refused", status=status, detail=detail, during="connect", hint=hint
            )
            body = msgspec.json.encode(problem)
            head = f"HTTP/1.1 {status} Refused\r\ncontent-type: {PROBLEM_MEDIA_TYPE}\r\nconnection: close\r\n"
            if status == 503:
                head += "retry-after: 1\r\n"
            self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            self.transport.close()

    return PeerProtocol
