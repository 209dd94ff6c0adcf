"""An opened verbs device: its context, protection domain, regions and endpoints."""

from __future__ import annotations

import ctypes
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hal.errors import InvalidArgument, NotReady
from hal.interfaces.rnic import Access
from hal.model.attributes import Attribute, known
from hal_rdma.verbs.binding import load_verbs
from hal_rdma.verbs.endpoint import VerbsEndpoint
from hal_rdma.verbs.memory import VerbsRegion
from hal_rdma.verbs.watcher import Watcher
from hal_rdma.verbs.wire import SESSION_BYTES

if TYPE_CHECKING:
    from hal.interfaces.rnic import Writable
    from hal_rdma.transport import Opening

_NO_ATOMICS = 0
_SOFT_ROCE = 0xFFFFFF
"""The vendor's number of soft-RoCE (``RXE_VENDOR_ID`` of the kernel's ``rxe_param.h``).

Its own fence hangs: in ``rxe_req.c`` of Linux 6.1 a fenced request waits for all reads and atomics to be answered, and
a read that is sent again because its answer is late counts among them itself. So it waits for ever; what comes after a
fence is held back here.
"""


class Pulse:
    """One byte that peers may read: who reads it knows that we live, and that what it wrote before has arrived."""

    def __init__(self, region: VerbsRegion, key: int) -> None:
        self.region = region
        self.address = region.address
        self.key = key


class VerbsTransport:
    """See :class:`hal_rdma.transport.Transport`."""

    name = "verbs"

    def __init__(self, opening: Opening) -> None:
        self.verbs = load_verbs()
        self.device = opening.device.id
        self.check = opening.check
        self.enter = opening.enter
        self.session = secrets.token_bytes(SESSION_BYTES)
        self.watcher = Watcher(opening.rdma_name)
        self._opening = opening
        self._regions: set[VerbsRegion] = set()
        self._endpoints: set[VerbsEndpoint] = set()
        self._closed = False
        try:
            self.context = self.verbs.Context(name=opening.rdma_name)
            self.limits = self.context.query_device()
            self.domain = self.verbs.PD(self.context)
        except self.verbs.Error as error:
            raise NotReady(
                f"verbs cannot open {opening.rdma_name}: {error}",
                device=self.device,
                during="open",
                hint="ibv_devinfo; look at /dev/infiniband and ulimit -l",
            ) from error
        self.fences: bool = self.limits.vendor_id != _SOFT_ROCE
        self.atomics: bool = self.limits.atomic_caps != _NO_ATOMICS
        region = self._register(8, Access.REMOTE_READ | Access.LOCAL_WRITE)
        self.pulse = Pulse(region, self.key_of(region))

    def key_of(self, region: VerbsRegion) -> int:
        """Return the NIC's own key of a region."""
        from hal_rdma.verbs.wire import unpack_key

        told = unpack_key(region.rkey)
        assert told is not None
        return told.key

    def register(self, memory: Writable | int, access: Access) -> VerbsRegion:
        """Register memory in the protection domain of this handle."""
        return self._register(memory, access)

    def _register(self, memory: Writable | int, access: Access) -> VerbsRegion:
        region = VerbsRegion(
            self.verbs,
            self.domain,
            memory,
            access,
            device=self.device,
            session=self.session,
            forget=self._regions.discard,
        )
        self._regions.add(region)
        return region

    def local_key(self, address: int, length: int, access: Access) -> int | None:
        """Return the local key of registered memory that holds a buffer, None if it is not registered for that."""
        for region in tuple(self._regions):
            start = region.address
            if start <= address and address + length <= start + region.length_bytes and access in region.access:
                return region.lkey
        return None

    def endpoint(self, port: int, rnr_timeout_seconds: float) -> VerbsEndpoint:
        """Create a queue pair in INIT."""
        if not 0 <= rnr_timeout_seconds < float("inf"):
            raise InvalidArgument(
                f"{rnr_timeout_seconds} seconds of patience", device=self.device, during="endpoint", hint="0 or more"
            )
        (told,) = (one for one in self._opening.ports() if one.number == port)
        endpoint = VerbsEndpoint(self, told, rnr_timeout_seconds)
        self._endpoints.add(endpoint)
        return endpoint

    def forget_endpoint(self, endpoint: VerbsEndpoint) -> None:
        """Note that an endpoint is closed."""
        self._endpoints.discard(endpoint)

    def telemetry(self) -> Mapping[str, Attribute]:
        """Return where the library came from, and what is open."""
        source = "pyverbs"
        return {
            "transport_library": known(self.verbs.origin, source),
            "transport_endpoints": known(len(self._endpoints), source),
            "transport_regions": known(len(self._regions) - 1, source),
        }

    def close(self) -> None:
        """Destroy endpoints, then regions, then the context."""
        if self._closed:
            return
        self._closed = True
        for endpoint in tuple(self._endpoints):
            endpoint.close()
        self.watcher.close()
        for region in tuple(self._regions):
            region.close()
        self.domain.close()
        self.context.close()

    def abandon(self) -> None:
        """Never destroy anything in a forked child: the kernel would take it for the parent's wish."""
        self._closed = True
        self.watcher.abandon()
        kept: list[Any] = [self.context, self.domain, self]
        for endpoint in self._endpoints:
            kept += endpoint.queue.leak()
        kept += self._regions
        for one in kept:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))
