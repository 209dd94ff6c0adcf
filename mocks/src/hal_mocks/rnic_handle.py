"""An opened mock RDMA NIC: ports, counters, telemetry, registration, endpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hal.drivers.guard import Guard
from hal.errors import DeviceGone, InvalidArgument, TransferError
from hal.interfaces.deadline import Deadline
from hal.interfaces.rnic import Access, CompletionCode, LinkLayer, Port
from hal.model.attributes import Absence, Attribute, absent, known
from hal.model.device import Device
from hal_mocks.base import MockHandle, tell_lies
from hal_mocks.faults import Fault
from hal_mocks.machine import Machine
from hal_mocks.rnic_endpoint import MockEndpoint
from hal_mocks.rnic_engine import Engine
from hal_mocks.rnic_files import Session, port_key, totals_of
from hal_mocks.rnic_link import card_is_up, observe, place_of, places_of, ports_of
from hal_mocks.rnic_memory import MockRegion
from hal_mocks.rnic_pair import LIVE

if TYPE_CHECKING:
    from hal.interfaces.rnic import Writable

COUNTERS = (
    "port_xmit_data_bytes",
    "port_rcv_data_bytes",
    "port_xmit_packets",
    "port_rcv_packets",
    "symbol_error",
    "local_ack_timeout_err",
    "rnr_nak_retry_err",
    "req_remote_access_errors",
    "resp_remote_access_errors",
)
INFINIBAND_ONLY = ("port_xmit_wait", "excessive_buffer_overrun_errors")
ETHERNET_ONLY = ("roce_slow_restart",)
NOT_MODELLED = ("out_of_sequence", "packet_seq_err", "link_error_recovery", "local_link_integrity_errors")


class MockRnic(MockHandle):
    """See :class:`hal.interfaces.rnic.Rnic`."""

    def __init__(self, machine: Machine, device: Device, guard: Guard) -> None:
        super().__init__(machine, device, guard)
        self.place = place_of(machine, device.id)
        self.session = Session(machine, device.id)
        self._regions: dict[bytes, MockRegion] = {}
        self._endpoints: set[MockEndpoint] = set()
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """The thread that works by itself, started by the first endpoint."""
        if self._engine is None:
            self._engine = Engine(self.place.rnic.name)
        return self._engine

    def _enter(self, step: str, deadline: Deadline | None = None) -> tuple[Fault, ...]:
        faults = super()._enter(step, deadline)
        if not card_is_up(self._machine, self.place):
            raise DeviceGone(
                f"its DPU {self.place.card} is down",
                device=self._id,
                during=step,
                hint="wait until the DPU is ready, or reset it; then open the NIC again",
            )
        return faults

    def ports(self, *, deadline: Deadline | None = None) -> Sequence[Port]:
        """Return the ports under the faults of now."""
        self._enter("ports", deadline)
        return ports_of(self._machine, self.place)

    def counters(self, port: int = 1, *, deadline: Deadline | None = None) -> Mapping[str, Attribute]:
        """Return what the port has counted in all processes."""
        faults = self._enter("counters", deadline)
        found = self._port(port, "counters")
        for connection in tuple(LIVE):
            connection.publish()
        totals = totals_of(self._machine, port_key(self._id, port), places_of(self._machine))
        source = f"mock:counters/{port}"
        counters = {name: known(totals.get(name, 0), source) for name in COUNTERS}
        counters["link_downed"] = known(observe(self._machine, self._id).count, source)
        is_ethernet = found.link_layer is LinkLayer.ETHERNET
        only: tuple[str, ...] = ETHERNET_ONLY if is_ethernet else INFINIBAND_ONLY
        other: tuple[str, ...] = INFINIBAND_ONLY if is_ethernet else ETHERNET_ONLY
        counters |= {name: known(0, source) for name in only}
        for name in other:
            counters[name] = absent(Absence.UNSUPPORTED, source, f"not on {found.link_layer}")
        for name in NOT_MODELLED:
            counters[name] = absent(Absence.NOT_REPORTED, source, "this driver does not count it")
        return tell_lies(counters, faults)

    def telemetry(self, *, deadline: Deadline | None = None) -> Mapping[str, Attribute]:
        """Return state and rate of each port, ``port1_state`` and so on."""
        faults = self._enter("telemetry", deadline)
        told: dict[str, Attribute] = {}
        for port in ports_of(self._machine, self.place):
            source = f"mock:ports/{port.number}"
            told[f"port{port.number}_state"] = known(port.state.value, source)
            told[f"port{port.number}_rate_gbps"] = known(port.rate_gbps, source)
        told["link_downed"] = known(observe(self._machine, self._id).count, "mock:counters/1")
        told["temperature_celsius"] = absent(Absence.UNSUPPORTED, "mock", "no sensor is modelled")
        return tell_lies(told, faults)

    def register(
        self, memory: Writable | int, access: Access = Access.LOCAL_WRITE, *, deadline: Deadline | None = None
    ) -> MockRegion:
        """Register new memory, which peers map, or the user's, which this process serves."""
        self._enter("register", deadline)
        region = MockRegion(self.session, memory, access, lambda rkey: self._regions.pop(rkey, None))
        self._regions[region.rkey] = region
        return region

    def region_of(self, rkey: bytes) -> MockRegion | None:
        """Return one of this handle's regions."""
        return self._regions.get(rkey)

    def endpoint(
        self, port: int = 1, *, rnr_timeout_seconds: float = 0.5, deadline: Deadline | None = None
    ) -> MockEndpoint:
        """Create a queue pair in INIT."""
        self._enter("endpoint", deadline)
        if not self._port(port, "endpoint").up:
            raise TransferError(
                f"port {port} is down",
                device=self._id,
                during="endpoint",
                hint="look at the cable and the switch",
                code=CompletionCode.RETRY_EXCEEDED,
            )
        endpoint = MockEndpoint(self, port, rnr_timeout_seconds)
        self._endpoints.add(endpoint)
        return endpoint

    def forget_endpoint(self, endpoint: MockEndpoint) -> None:
        """Note that an endpoint is closed."""
        self._endpoints.discard(endpoint)

    def _port(self, number: int, step: str) -> Port:
        for port in ports_of(self._machine, self.place):
            if port.number == number:
                return port
        raise InvalidArgument(
            f"there is no port {number}", device=self._id, during=step, hint="ports() names those that exist"
        )

    def close(self) -> None:
        """Close connections, deregister memory, remove the session."""
        if self._closed:
            return
        super().close()
        if self._forked:
            return
        for endpoint in tuple(self._endpoints):
            endpoint.close()
        for region in tuple(self._regions.values()):
            region.close()
        if self._engine is not None:
            self._engine.close()
        self.session.close()

    def _abandon(self) -> None:
        for endpoint in self._endpoints:
            endpoint.abandon()
        if self._engine is not None:
            self._engine.abandon()
        self.session.abandon()

    def __del__(self) -> None:
        # Nobody closed it, and whoever is in the middle of something may hold any lock: only tell the thread to end.
        # What is left in the folder is swept by whoever comes next, as after a killed process.
        engine: Engine | None = getattr(self, "_engine", None)
        if engine is not None and not self._closed and not self._forked:
            engine.stop()
