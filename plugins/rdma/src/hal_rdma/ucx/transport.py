"""UCX as the data plane of one opened NIC."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING

from hal.errors import InvalidArgument
from hal.interfaces.rnic import Access, LinkLayer, PhysicalState, Port, PortState
from hal.model.attributes import Absence, Attribute
from hal_rdma.buffers import as_bytes
from hal_rdma.software import SoftwareNic, transports_of
from hal_rdma.ucx.changes import Changer
from hal_rdma.ucx.context import Context
from hal_rdma.ucx.declarations import SEQ_CST
from hal_rdma.ucx.endpoint import UcxEndpoint
from hal_rdma.ucx.keys import SECRET_BYTES, open_key, this_process
from hal_rdma.ucx.library import Library
from hal_rdma.ucx.link import Link
from hal_rdma.ucx.link_state import TOKEN_BITS
from hal_rdma.ucx.progress import Progress
from hal_rdma.ucx.region import OwnRegion, UcxRegion, allocate, map_buffer
from hal_rdma.ucx.targets import ORDERED

if TYPE_CHECKING:
    from hal.interfaces.deadline import Deadline
    from hal.interfaces.rnic import Writable
    from hal_rdma.transport import Opening

_SOURCE = "ucx"
_NO_LINK = Attribute(source=_SOURCE, absent=Absence.UNSUPPORTED, detail="software over UCX: there is no link")
_WRITES = Access.REMOTE_WRITE | Access.REMOTE_ATOMIC


class UcxTransport:
    """Regions and endpoints over one UCP context; see :class:`hal_rdma.transport.Transport`."""

    name = "ucx"

    def __init__(self, opening: Opening, library: Library) -> None:
        device = opening.device
        self.device = device.id
        self.check: Callable[[], None] = opening.check
        self.enter: Callable[[str, Deadline | None], None] = opening.enter
        self.library = library
        nic = SoftwareNic(name=device.name, transports=transports_of(device))
        self.software = bool(nic.transports)
        self.shares_memory = self.software and nic.shares_memory
        self.family = nic.medium if self.software else "verbs"
        self.version = ".".join(map(str, library.version[:2]))
        self.settings = _settings(nic) if self.software else {"NET_DEVICES": f"{opening.rdma_name}:1"}
        self.owner = secrets.token_bytes(16)
        self.secret = secrets.token_bytes(SECRET_BYTES)
        self.process = this_process()
        self.context = Context(library, self.settings, device.id)
        self.progress = Progress(device.id)
        self.forked = False
        self.barrier = _barrier(library)
        self._lock = Lock()
        self._regions: dict[int, UcxRegion] = {}
        self._endpoints: set[UcxEndpoint] = set()
        self.changer = Changer(library, self._regions)
        self._next_region = 1
        self._closed_out = self._closed_in = 0
        self._closed = False

    # Memory

    def register(self, memory: Writable | int, access: Access) -> UcxRegion:
        """Register a buffer in place, or new memory that UCX allocates."""
        if access & _WRITES and not access & Access.LOCAL_WRITE:
            raise self._invalid("remote writing needs LOCAL_WRITE", "add Access.LOCAL_WRITE")
        if isinstance(memory, int):
            if memory <= 0:
                raise self._invalid(f"{memory} bytes are no memory", "at least one byte")
            view, mapped = allocate(self.context, memory)
            region: UcxRegion = self._keep(lambda number: OwnRegion(self, number, view, mapped, access))
            return region
        writable = bool(access & (Access.LOCAL_WRITE | _WRITES))
        buffer = as_bytes(memory, self.device, "register", writable=writable)
        if not buffer.nbytes:
            raise self._invalid("the buffer is empty", "at least one byte")
        in_place = map_buffer(self.context, buffer)
        return self._keep(lambda number: UcxRegion(self, number, buffer, in_place, access))

    def _keep(self, make: Callable[[int], UcxRegion]) -> UcxRegion:
        with self._lock:
            number = self._next_region
            self._next_region += 1
            region = self._regions[number] = make(number)
        return region

    def region_of(self, sealed: bytes) -> UcxRegion | None:
        """Return the living region of a key of ours, None for any other bytes."""
        key = open_key(sealed, self.owner, self.secret)
        return None if key is None else self._regions.get(key.region)

    def forget_region(self, region: UcxRegion) -> None:
        """A region closes itself."""
        self._regions.pop(region.number, None)

    def _invalid(self, why: str, hint: str) -> InvalidArgument:
        return InvalidArgument(why, device=self.device, during="register", hint=hint)

    # Endpoints

    def endpoint(self, port: int, rnr_timeout_seconds: float) -> UcxEndpoint:
        """Create an endpoint with a worker of its own."""
        link = Link(self, secrets.randbits(TOKEN_BITS), rnr_timeout_seconds)
        endpoint = UcxEndpoint(self, link)
        with self._lock:
            self._endpoints.add(endpoint)
        self.progress.add(link)
        return endpoint

    def forget_endpoint(self, endpoint: UcxEndpoint) -> None:
        """An endpoint closes itself; what it has counted stays."""
        with self._lock:
            if endpoint in self._endpoints:
                self._endpoints.discard(endpoint)
                self._closed_out += endpoint.link.out_bytes
                self._closed_in += endpoint.link.in_bytes

    # What it tells

    def telemetry(self) -> Mapping[str, Attribute]:
        """The library, its transports, and how much of it is in use."""
        direct = self.library.atomics is not None
        return {
            "transport_library": Attribute(self.library.words, _SOURCE),
            "transport_settings": Attribute(" ".join(f"{k}={v}" for k, v in self.settings.items()), _SOURCE),
            "transport_atomics": Attribute("libatomic, or UCX" if direct else "UCX", _SOURCE),
            "transport_regions": Attribute(len(self._regions), _SOURCE),
            "transport_endpoints": Attribute(len(self._endpoints), _SOURCE),
            "transport_wakeups": Attribute(self.progress.wakeups, _SOURCE),
        }

    # The end

    def close(self) -> None:
        """Close all endpoints, then all regions. Idempotent."""
        if self._closed or self.forked:
            return
        self._closed = True
        for endpoint in tuple(self._endpoints):
            endpoint.close()
        for region in tuple(self._regions.values()):
            region.close()
        self.progress.close()
        self.context.leave()

    def abandon(self) -> None:
        """Let go in a forked child: UCX and its memory are the parent's."""
        self.forked = True
        self.progress.abandon()
        for endpoint in self._endpoints:
            endpoint.link.orphan()


class SoftwareTransport(UcxTransport):
    """The data plane of a software NIC, which also stands for what a link would tell."""

    def ports(self) -> Sequence[Port]:
        """The one port: always up. No link limits its rate, which is what infinity says here."""
        return (
            Port(
                number=1,
                state=PortState.ACTIVE,
                physical_state=PhysicalState.LINK_UP,
                link_layer=LinkLayer.ETHERNET,
                rate_gbps=float("inf"),
                max_rate_gbps=float("inf"),
                lid=0,
            ),
        )

    def counters(self, port: int) -> Mapping[str, Attribute]:
        """What this handle has moved; what only a link can count is absent."""
        with self._lock:
            links = [endpoint.link for endpoint in self._endpoints]
            sent = self._closed_out + sum(link.out_bytes for link in links)
            got = self._closed_in + sum(link.in_bytes for link in links)
        return {
            "port_xmit_data_bytes": Attribute(sent, "ucx:this handle"),
            "port_rcv_data_bytes": Attribute(got, "ucx:this handle"),
            "port_xmit_packets": _NO_LINK,
            "port_rcv_packets": _NO_LINK,
            "link_downed": _NO_LINK,
        }

    def telemetry(self) -> Mapping[str, Attribute]:
        """As of any NIC; a software NIC has no rate."""
        return {**super().telemetry(), "port1_rate_gbps": _NO_LINK}


def _settings(nic: SoftwareNic) -> dict[str, str]:
    settings = {"TLS": ",".join(dict.fromkeys((*nic.transports, "self")))}
    if not nic.shares_memory:
        settings["KEEPALIVE_INTERVAL"] = "300ms"
    return settings


def _barrier(library: Library) -> Callable[[], None] | None:
    """Return what orders copies; None where the processor does, or where nothing is copied."""
    if ORDERED or library.atomics is None:
        return None
    fence = library.atomics.fence
    return lambda: fence(SEQ_CST)
