"""One side of a connection to be: a reliable queue pair, its address, and its way from INIT to RTS."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Self

from hal.errors import DeviceBusy, InvalidArgument, TransferError
from hal.interfaces.rnic import ALL_ACCESS, CompletionCode, ConnectionState, Gid, LinkLayer, Port
from hal_rdma.verbs.queue import DEPTH, WorkQueue
from hal_rdma.verbs.timing import ACK_RETRIES, ACK_TIMEOUT, plan_rnr
from hal_rdma.verbs.wire import Address, pack_address, unpack_address

if TYPE_CHECKING:
    from hal.interfaces.deadline import Deadline
    from hal_rdma.verbs.connection import VerbsConnection
    from hal_rdma.verbs.session import VerbsTransport

INLINE_BYTES = 220
"""What is asked for to be copied into the request itself; every NIC of today gives it, and none is needed."""

_MOST_READS = 16
_INFINIBAND, _ETHERNET = 1, 2
_HOPS = 64
_NO_GID = bytes(16)


class VerbsEndpoint:
    """See :class:`hal.interfaces.rnic.Endpoint`."""

    def __init__(self, transport: VerbsTransport, port: Port, rnr_timeout_seconds: float) -> None:
        self.transport = transport
        self.port = port
        self.plan = plan_rnr(rnr_timeout_seconds)
        self.rnr_timeout_seconds = rnr_timeout_seconds
        self._connection: VerbsConnection | None = None
        self._closed = False
        verbs, enums = transport.verbs, transport.verbs.enums
        self._gid = best_gid(port.gids)
        if self._gid is None and port.link_layer is LinkLayer.ETHERNET:
            raise TransferError(
                f"port {port.number} has no GID: its network interface has no address",
                device=transport.device,
                during="endpoint",
                hint="ip addr add … dev <netdev>, and set it up",
                code=CompletionCode.RETRY_EXCEEDED,
            )
        attributes = transport.context.query_port(port.number)
        self._mtu: int = attributes.active_mtu
        self._sequence = secrets.randbits(24)
        self.queue = WorkQueue(verbs, transport.context, transport.watcher, transport.device)
        try:
            self._pair, self.inline_bytes = self._create(verbs, enums)
        except verbs.Error as error:
            self.queue.close()
            raise DeviceBusy(
                f"the NIC gives no queue pair: {error}",
                device=transport.device,
                during="endpoint",
                hint="close other endpoints; the limit is max_qp of ibv_devinfo -v",
            ) from error
        self.queue.begin(self._pair)
        pulse = transport.pulse
        self.address = pack_address(
            Address(
                link_layer=_ETHERNET if port.link_layer is LinkLayer.ETHERNET else _INFINIBAND,
                mtu=self._mtu,
                lid=port.lid,
                queue=self._pair.qp_num,
                sequence=self._sequence,
                reads=min(_MOST_READS, transport.limits.max_qp_rd_atom),
                gid=gid_bytes(self._gid.gid) if self._gid is not None else _NO_GID,
                pulse=pulse.address,
                pulse_key=pulse.key,
                patience_us=min(int(rnr_timeout_seconds * 1e6), (1 << 32) - 1),
                session=transport.session,
            )
        )

    def _create(self, verbs: Any, enums: Any) -> tuple[Any, int]:
        first = verbs.QPAttr(port_num=self.port.number)
        first.qp_access_flags = int(ALL_ACCESS)
        error: Exception | None = None
        for inline in (INLINE_BYTES, 0):
            capacity = verbs.QPCap(max_send_wr=DEPTH, max_recv_wr=DEPTH, max_inline_data=inline)
            wanted = verbs.QPInitAttr(
                qp_type=enums.IBV_QPT_RC, scq=self.queue.completions, rcq=self.queue.completions, cap=capacity
            )
            try:
                return verbs.QP(self.transport.domain, wanted, first), inline
            except verbs.Error as refused:
                error = refused
        assert error is not None
        raise error

    @property
    def state(self) -> ConnectionState:
        """The queue pair's state."""
        return ConnectionState.RESET if self._closed else self.queue.state

    def connect(self, address: bytes, *, deadline: Deadline | None = None) -> VerbsConnection:
        """Move the queue pair to RTR and RTS towards an address; the other side is not asked."""
        from hal_rdma.verbs.connection import VerbsConnection

        transport = self.transport
        transport.enter("connect", deadline)
        if self._closed or self._connection is not None:
            raise DeviceBusy(
                "the endpoint is connected already or closed",
                device=transport.device,
                during="connect",
                hint="one endpoint, one connection: make another endpoint",
            )
        told = unpack_address(address)
        if told is None:
            raise self._invalid("these bytes are no address of a verbs endpoint", "exchange endpoint.address whole")
        mine = _ETHERNET if self.port.link_layer is LinkLayer.ETHERNET else _INFINIBAND
        if told.link_layer != mine:
            raise self._invalid("the other side is of another link layer", "choose a NIC of the same fabric")
        try:
            self._pair.to_rts(self._path_to(told))
        except transport.verbs.Error as error:
            raise TransferError(
                f"the other side cannot be reached: {error}",
                device=transport.device,
                during="connect",
                hint="both addresses must be of one network; look at the port's GIDs",
                code=CompletionCode.RETRY_EXCEEDED,
            ) from error
        self.queue.connected(self.rnr_timeout_seconds if self.plan.by_clock else float("inf"))
        self._connection = VerbsConnection(self, told)
        return self._connection

    def _path_to(self, told: Address) -> Any:
        verbs, port = self.transport.verbs, self.port
        if self._gid is not None and (port.link_layer is LinkLayer.ETHERNET or not told.lid):
            route = verbs.GlobalRoute(dgid=verbs.GID(gid_text(told.gid)), sgid_index=self._gid.index, hop_limit=_HOPS)
            way = verbs.AHAttr(port_num=port.number, is_global=1, gr=route, dlid=told.lid)
        else:
            way = verbs.AHAttr(port_num=port.number, is_global=0, dlid=told.lid)
        path = verbs.QPAttr(port_num=port.number)
        path.qp_access_flags = int(ALL_ACCESS)
        path.ah_attr = way
        path.path_mtu = min(self._mtu, told.mtu)
        path.dest_qp_num = told.queue
        path.rq_psn, path.sq_psn = told.sequence, self._sequence
        limits = self.transport.limits
        path.max_dest_rd_atomic = min(_MOST_READS, limits.max_qp_rd_atom)
        path.max_rd_atomic = max(1, min(_MOST_READS, limits.max_qp_init_rd_atom, told.reads))
        path.min_rnr_timer = plan_rnr(told.patience_us / 1e6).timer  # the waiting is the other side's
        path.rnr_retry = self.plan.retries
        path.timeout, path.retry_cnt = ACK_TIMEOUT, ACK_RETRIES
        return path

    def _invalid(self, what: str, hint: str) -> InvalidArgument:
        return InvalidArgument(what, device=self.transport.device, during="connect", hint=hint)

    def close(self) -> None:
        """Destroy the queue pair."""
        if not self._closed:
            self._closed = True
            self.queue.close()
            if self._connection is not None:
                self._connection.give_back()
            self.transport.forget_endpoint(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def best_gid(gids: tuple[Gid, ...]) -> Gid | None:
    """Return the GID to be reached at: RoCE v2 over IPv4 first, then RoCE v2 that can be routed, then what there is."""
    return min(gids, key=_rank, default=None)


def _rank(gid: Gid) -> tuple[bool, bool, bool, int]:
    digits = gid.gid.lower()
    mapped = digits.startswith("0000:0000:0000:0000:0000:ffff:")
    return gid.type != "RoCE v2", not mapped, digits.startswith("fe80:"), gid.index


def gid_bytes(text: str) -> bytes:
    """Return the 16 bytes of a GID of eight groups of hexadecimal digits."""
    return bytes.fromhex(text.replace(":", "").rjust(32, "0"))[:16]


def gid_text(gid: bytes) -> str:
    """Return a GID as eight groups of hexadecimal digits."""
    digits = gid.hex()
    return ":".join(digits[at : at + 4] for at in range(0, 32, 4))
