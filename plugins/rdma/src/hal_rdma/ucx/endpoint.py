"""One side of a connection to be, and the transport that gives regions and endpoints for one opened NIC."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self

from hal.errors import DeviceBusy, InvalidArgument, TransferError
from hal.interfaces.deadline import Deadline
from hal.interfaces.rnic import CompletionCode, ConnectionState
from hal_rdma.ucx.connection import UcxConnection
from hal_rdma.ucx.keys import Address, decode_address, encode_address, started_at
from hal_rdma.ucx.link import Link

if TYPE_CHECKING:
    from hal_rdma.ucx.transport import UcxTransport


class UcxEndpoint:
    """A worker of its own, waiting for the other side's address; see :class:`hal.interfaces.rnic.Endpoint`."""

    def __init__(self, transport: UcxTransport, link: Link) -> None:
        self._transport = transport
        self.link = link
        self._connection: UcxConnection | None = None
        process = transport.process
        self._address = encode_address(
            Address(
                family=transport.family,
                version=transport.version,
                boot=process.boot,
                namespace=process.namespace,
                pid=process.pid,
                started=process.started,
                owner=transport.owner,
                secret=transport.secret,
                token=link.token,
                worker=link.worker.address,
            )
        )

    @property
    def address(self) -> bytes:
        """Bytes for the other side."""
        return self._address

    @property
    def state(self) -> ConnectionState:
        """``init`` until connected."""
        return self.link.state

    def connect(self, address: bytes, *, deadline: Deadline | None = None) -> UcxConnection:
        """Connect to the other side."""
        transport = self._transport
        transport.enter("connect", deadline)
        if self.link.state is not ConnectionState.INIT:
            raise DeviceBusy(
                "the endpoint is connected already or closed",
                device=transport.device,
                during="connect",
                hint="one endpoint, one connection: make another endpoint",
            )
        peer = decode_address(bytes(address))
        if peer is None:
            raise self._unfit("these bytes are no address", "carry Endpoint.address of the other side, whole")
        if peer.family != transport.family:
            raise self._unfit(f"the other side talks over {peer.family}", f"open one over {transport.family}")
        if peer.version != transport.version:
            raise self._unfit(f"the other side has UCX {peer.version}, this one {transport.version}", "HAL_RDMA_UCX")
        watched = self._watch(peer)
        try:
            self.link.connect(peer)
        except BaseException:
            if watched is not None:
                os.close(watched)
            raise
        if watched is not None:
            link = self.link
            transport.progress.watch(link, watched, lambda: link.lose("the peer's process is dead"))
        self._connection = UcxConnection(self, self.link, peer)
        return self._connection

    def _watch(self, peer: Address) -> int | None:
        """Return a descriptor that speaks when the peer's process ends; None for this one and for another machine's."""
        process = self._transport.process
        if peer.boot != process.boot:
            if self._transport.shares_memory:
                raise self._unfit("the other side is on another machine", "a software NIC over TCP")
            return None
        if peer.namespace != process.namespace:
            if self._transport.shares_memory:
                raise self._unfit("the other side is in another PID name space", "one PID name space, or TCP")
            return None
        if (peer.pid, peer.started) == (process.pid, process.started):
            return None
        try:
            watched = os.pidfd_open(peer.pid)
        except OSError:
            raise self._unreachable() from None
        if started_at(peer.pid) != peer.started:
            os.close(watched)
            raise self._unreachable()
        return watched

    def _unreachable(self) -> TransferError:
        return TransferError(
            "the other side's process is dead",
            device=self._transport.device,
            during="connect",
            hint="exchange fresh addresses",
            code=CompletionCode.RETRY_EXCEEDED,
        )

    def _unfit(self, why: str, hint: str) -> InvalidArgument:
        return InvalidArgument(why, device=self._transport.device, during="connect", hint=hint)

    def close(self) -> None:
        """Give the worker back, and the connection with it. Idempotent."""
        if self._transport.forked:
            return
        self._transport.forget_endpoint(self)
        self.link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
