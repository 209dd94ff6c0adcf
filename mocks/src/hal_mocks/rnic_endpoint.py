"""One side of a mock connection to be: its queue pair's page, its address, and the socket that peers ring at."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Self
from weakref import WeakMethod

from hal.errors import DeviceBusy, TransferError
from hal.interfaces.deadline import Deadline
from hal.interfaces.rnic import CompletionCode, ConnectionState
from hal_mocks.rnic_engine import dial, listen
from hal_mocks.rnic_files import ERROR, INIT, OWN_TAG, RESET, RTR, RTS, STATE, SharedFile, queue_path
from hal_mocks.rnic_memory import serve
from hal_mocks.rnic_path import Route, decode_address, encode_address

if TYPE_CHECKING:
    from hal_mocks.rnic_connection import MockConnection
    from hal_mocks.rnic_handle import MockRnic

STATES = {
    RESET: ConnectionState.RESET,
    INIT: ConnectionState.INIT,
    RTR: ConnectionState.RTR,
    RTS: ConnectionState.RTS,
    ERROR: ConnectionState.ERROR,
}


class MockEndpoint:
    """A queue pair; see :class:`hal.interfaces.rnic.Endpoint`."""

    def __init__(self, nic: MockRnic, port: int, rnr_timeout_seconds: float) -> None:
        self.nic = nic
        self.port = port
        self.rnr_timeout_seconds = rnr_timeout_seconds
        self._session = nic.session
        self.number, self.page = self._session.create_queue()
        self.socket_name = socket_name(self.number)
        self._listener = listen(self._session.folder, self.socket_name)
        self._accepted: dict[socket.socket, bool] = {}
        self._lock = threading.Lock()
        self._connection: MockConnection | None = None
        self._closed = False
        self.address = encode_address(
            nic.device.id, self._session.name, self.number, self.page.words[OWN_TAG], self.port
        )
        nic.engine.watch(self._listener, self._accept)

    @property
    def state(self) -> ConnectionState:
        """The queue pair's state."""
        return ConnectionState.RESET if self._closed else STATES[self.page.words[STATE]]

    def connect(self, address: bytes, *, deadline: Deadline | None = None) -> MockConnection:
        """Move to RTR and RTS towards an address."""
        from hal_mocks.rnic_connection import MockConnection

        nic = self.nic
        nic._enter("connect", deadline)
        if self._closed or self._connection is not None:
            raise DeviceBusy(
                "the endpoint is connected already or closed",
                device=nic.device.id,
                during="connect",
                hint="one endpoint, one connection: make another endpoint",
            )
        told = decode_address(address, nic.device.id)
        route = Route.to(nic._machine, nic.place, told)
        session = route.session_of(told)
        peer: SharedFile | None = None
        try:
            peer = SharedFile(queue_path(session, told.queue))
            doorbell = dial(session, socket_name(told.queue), b"D")
        except OSError:
            if peer is not None:
                peer.close()
            raise self._unreachable("the other side's endpoint is closed, or its process is dead") from None
        if peer.words[OWN_TAG] != told.tag:
            doorbell.close()
            peer.close()
            raise self._unreachable("the other side's endpoint is another one by now")
        peer.close()
        self._connection = MockConnection(self, route, told, peer, doorbell, session)
        return self._connection

    def _unreachable(self, why: str) -> TransferError:
        return TransferError(
            why,
            device=self.nic.device.id,
            during="connect",
            hint="exchange fresh addresses",
            code=CompletionCode.RETRY_EXCEEDED,
        )

    def _accept(self, _: socket.socket) -> None:
        with self._lock, contextlib.suppress(OSError):
            while not self._closed:
                accepted, _ = self._listener.accept()
                accepted.setblocking(False)
                self._accepted[accepted] = False
                self.nic.engine.watch(accepted, self._rung)

    def _rung(self, accepted: socket.socket) -> None:
        """A peer rang (D), asks for user memory (R), or is gone."""
        greeted = self._accepted.get(accepted, False)
        try:
            # What follows the first byte of a courier is its first request, which is for the thread that serves it.
            what = accepted.recv(4096 if greeted else 1)
        except BlockingIOError:
            return
        except OSError:
            what = b""
        if what == b"":
            self._hang_up(accepted)
        elif not greeted and what == b"R":
            self.nic.engine.forget(accepted.fileno())
            self._accepted.pop(accepted, None)
            accepted.setblocking(True)
            regions = WeakMethod(self.nic.region_of)
            name = f"rnic-serve-{self.number}"
            threading.Thread(target=serve, args=(accepted, regions), name=name, daemon=True).start()
            return
        elif not greeted:
            self._accepted[accepted] = True
        if self._connection is not None:
            self._connection.advance()

    def _hang_up(self, *sockets: socket.socket) -> None:
        with self._lock:
            for hung_up in sockets:
                if hung_up.fileno() >= 0:
                    self.nic.engine.forget(hung_up.fileno())
                    hung_up.close()
                self._accepted.pop(hung_up, None)

    def abandon(self) -> None:
        """Let a forked child's connection look before every verb, and so find out whose it is."""
        if self._connection is not None:
            self._connection.abandon()

    def close(self) -> None:
        """Give back the queue pair."""
        if self.nic._forked:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._connection is not None:
            self._connection.shut()
        self.page.words[STATE] = RESET
        self._hang_up(self._listener, *self._accepted)
        (self._session.folder / self.socket_name).unlink(missing_ok=True)
        self._session.retire_queue(self.page)
        self.page.close()
        self.nic.forget_endpoint(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def socket_name(queue: int) -> str:
    """Return the name of the socket at which a queue pair is rung."""
    return f"qp-{queue}.sock"
