"""An opened RDMA NIC: ports, counters and telemetry from sysfs; memory and endpoints from the transport chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from hal.drivers.opened import OpenedDevice
from hal.errors import DeviceGone, InvalidArgument, TransferError
from hal.host.tree import HostTree
from hal.interfaces.rnic import Access, CompletionCode, Port
from hal.model.attributes import Absence, Attribute, absent, known
from hal_rdma.counters import numbers, read_counters
from hal_rdma.ports import read_ports
from hal_rdma.transport import OwnPorts

if TYPE_CHECKING:
    from hal.drivers.contract import HostRoot
    from hal.drivers.guard import Guard
    from hal.interfaces.deadline import Deadline
    from hal.interfaces.rnic import Endpoint, Region, Writable
    from hal.model.device import Device
    from hal_rdma.transport import Choice, Transport


class RdmaNic(OpenedDevice):
    """See :class:`hal.interfaces.rnic.Rnic`. It is of use once :meth:`attach` has given it what carries its data."""

    _transport: Transport
    _choice: Choice

    def __init__(self, device: Device, guard: Guard, host: HostRoot, rdma_name: str) -> None:
        super().__init__(device, guard)
        self._rdma_name = rdma_name
        self._tree = HostTree(host.root)
        self._best_gbps: dict[int, float] = {}
        self._own: OwnPorts | None = None

    def attach(self, choice: Choice, transport: Transport) -> None:
        """Take the transport; its reason is told in the telemetry."""
        self._choice = choice
        self._transport = transport
        self._own = transport if isinstance(transport, OwnPorts) else None

    def read_ports(self) -> tuple[Port, ...]:
        """Return the ports without asking the guard: for transports."""
        if self._own is not None:
            return tuple(self._own.ports())
        ports = read_ports(self._tree.sys, self._rdma_name)
        if not ports:
            raise DeviceGone(
                "the kernel does not list the device any more",
                device=self._device.id,
                during="ports",
                hint="hal-probe list; then open it again",
            )
        best = self._best_gbps
        for port in ports:
            best[port.number] = max(best.get(port.number, 0.0), port.rate_gbps)
        return tuple(msgspec.structs.replace(port, max_rate_gbps=best[port.number]) for port in ports)

    def ports(self, *, deadline: Deadline | None = None) -> Sequence[Port]:
        """Return all ports as they are now. ``max_rate_gbps`` is the best that this handle has seen."""
        self._enter("ports", deadline)
        return self.read_ports()

    def counters(self, port: int = 1, *, deadline: Deadline | None = None) -> Mapping[str, Attribute]:
        """Return a port's counters; see :mod:`hal_rdma.counters` for what is absent where."""
        self._enter("counters", deadline)
        found = self._port(port, "counters")
        if self._own is not None:
            return self._own.counters(port)
        return read_counters(self._tree.sys, self._rdma_name, port, found.link_layer)

    def telemetry(self, *, deadline: Deadline | None = None) -> Mapping[str, Attribute]:
        """Return state and rate of each port, lost links, temperature, and what carries the data and why that."""
        self._enter("telemetry", deadline)
        found: dict[str, Attribute] = {}
        downs: list[Attribute] = []
        for port in self.read_ports():
            source = "sysfs:ports" if self._own is None else f"transport:{self._transport.name}"
            found[f"port{port.number}_state"] = known(port.state.value, source)
            found[f"port{port.number}_rate_gbps"] = (
                known(port.rate_gbps, source)
                if port.rate_gbps > 0
                else absent(Absence.NOT_REPORTED, source, "the port does not say")
            )
            counted = (
                read_counters(self._tree.sys, self._rdma_name, port.number, port.link_layer)
                if self._own is None
                else self._own.counters(port.number)
            )
            downs.append(counted.get("link_downed", absent(Absence.NOT_REPORTED, source)))
        found["link_downed"] = _sum(downs)
        found["temperature_celsius"] = self._temperature()
        found["transport"] = known(self._choice.name, "hal_rdma")
        found["transport_reason"] = known(self._choice.reason, "hal_rdma")
        return {**found, **self._transport.telemetry()}

    def _temperature(self) -> Attribute:
        """Read the sensor that the NIC's PCI function has, if its driver shows one (mlx5 since Linux 6.7)."""
        source = "sysfs:hwmon"
        address = self._device.location.pci_address
        tree = self._tree.sys
        folder = tree.resolve(f"bus/pci/devices/{address}") if address else None
        for sensor in tree.names(f"{folder}/hwmon") if folder else ():
            millidegrees = tree.number(f"{folder}/hwmon/{sensor}/temp1_input")
            if isinstance(millidegrees, int):
                return known(millidegrees / 1000, source)
        return absent(Absence.NOT_REPORTED, source, "the driver shows no sensor")

    def register(
        self, memory: Writable | int, access: Access = Access.LOCAL_WRITE, *, deadline: Deadline | None = None
    ) -> Region:
        """Register memory with the transport."""
        self._enter("register", deadline)
        return self._transport.register(memory, access)

    def endpoint(
        self, port: int = 1, *, rnr_timeout_seconds: float = 0.5, deadline: Deadline | None = None
    ) -> Endpoint:
        """Create an endpoint of the transport on a port that is up."""
        self._enter("endpoint", deadline)
        if not self._port(port, "endpoint").up:
            raise TransferError(
                f"port {port} is down",
                device=self._device.id,
                during="endpoint",
                hint="look at the cable and the switch, or: ip link set dev <netdev> up",
                code=CompletionCode.RETRY_EXCEEDED,
            )
        return self._transport.endpoint(port, rnr_timeout_seconds)

    def _port(self, number: int, step: str) -> Port:
        for port in self.read_ports():
            if port.number == number:
                return port
        raise InvalidArgument(
            f"there is no port {number}", device=self._device.id, during=step, hint="ports() names those that exist"
        )

    def _release(self) -> None:
        if hasattr(self, "_transport"):
            self._transport.close()
        self._tree.close()

    def _abandon(self) -> None:
        if hasattr(self, "_transport"):
            self._transport.abandon()
        self._tree.close()


def _sum(downs: Sequence[Attribute]) -> Attribute:
    """Add what the ports counted; nothing is known if none counts."""
    told = numbers({str(number): one for number, one in enumerate(downs)})
    if told:
        return known(sum(told.values()), next(one.source for one in downs if one.known))
    return downs[0] if downs else absent(Absence.NOT_REPORTED, "sysfs:counters/link_downed")
