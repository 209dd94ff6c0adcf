"""Where PCI functions go: host bridges, root ports, switches and bus numbers, given by hand or chosen for you."""

from __future__ import annotations

import re

from hal_mocks.graph import PciFunction
from hal_mocks.profile_models import Library, SwitchModel, one_of, split_id
from hal_mocks.profile_schema import Mistake

Path = tuple[str | int, ...]
_ADDRESS = re.compile(r"([0-9a-f]{4,8}):([0-9a-f]{2}):([01][0-9a-f])\.([0-7])")
_BRIDGE_CLASS = "060400"


class Function:
    """What a slot holds: one PCI function, as the builder describes it."""

    def __init__(
        self,
        vendor: str,
        device: str,
        class_code: str,
        *,
        driver: str = "",
        subsystem: tuple[str, str] = ("0000", "0000"),
        serial: str = "",
    ) -> None:
        self.vendor = vendor
        self.device = device
        self.class_code = class_code
        self.driver = driver
        self.subsystem = subsystem
        self.serial = serial


class Slot:
    """A place for a device with one or more functions; ``addresses`` are known after :meth:`Layout.assign`."""

    def __init__(
        self, path: Path, functions: list[Function], speed_gts: float, width: int, max_speed_gts: float, max_width: int
    ) -> None:
        self.path = path
        self.functions = functions
        self.speed_gts = speed_gts
        self.width = width
        self.max_speed_gts = max_speed_gts
        self.max_width = max_width
        self.given = ""
        self.addresses: list[str] = []


class Bridge:
    """A host bridge with what is below it: a switch, or root ports."""

    def __init__(self, path: Path, numa: int, domain: int, bus: int | None, model: SwitchModel | None) -> None:
        self.path = path
        self.numa = numa
        self.domain = domain
        self.bus = bus
        self.model = model
        self.slots: list[Slot] = []

    @property
    def own_buses(self) -> int:
        """How many buses it needs apart from its slots'."""
        return 1 if self.model is None else 3


class Layout:
    """Collects slots, then gives every function its address."""

    def __init__(self, library: Library, root_port: str, root_speed: float) -> None:
        self.library = library
        self.root_vendor, self.root_device = split_id(root_port, ("host", "cpu"))
        self.root_speed = root_speed
        self.switches: dict[str, Bridge] = {}
        self.direct: dict[tuple[int, int], Bridge] = {}
        self.functions: list[PciFunction] = []
        self._used: dict[tuple[int, int], Path] = {}

    def add_switch(self, name: str, path: Path, numa: int, domain: int, bus: int | None, model: str) -> None:
        """Declare a switch."""
        if name in self.switches:
            raise Mistake((*path, "name"), f"a second switch is called {name!r}")
        if not 0 <= domain < 1 << 32:
            raise Mistake((*path, "domain"), f"PCI domain {domain:#x} does not fit in 32 bits")
        if bus is not None and not 0 <= bus <= 0xFC:
            raise Mistake((*path, "bus"), f"bus {bus:#x} is outside 0x00 to 0xfc")
        found = self.library.find("switch", model, SwitchModel, (*path, "model"))
        self.switches[name] = Bridge(path, numa, domain, bus, found)

    def put(self, slot: Slot, switch: str, numa: int, domain: int, given: str) -> None:
        """Put a slot below a switch, or below a root port of its NUMA node."""
        if given:
            match = _ADDRESS.fullmatch(given)
            if match is None:
                raise Mistake((*slot.path, "pci"), f"{given!r} is no PCI address", "such as '0000:1b:00.0'")
            domain = int(match.group(1), 16)
            slot.given = f"{domain:04x}:{match.group(2)}:{match.group(3)}.{match.group(4)}"
        if switch:
            bridge = self.switches.get(switch)
            if bridge is None:
                raise Mistake((*slot.path, "switch"), f"unknown switch {switch!r}", one_of(switch, self.switches))
            if given and bridge.domain != domain:
                raise Mistake((*slot.path, "pci"), f"{given!r} is in another PCI domain than switch {switch!r}")
        else:
            if not 0 <= domain < 1 << 32:
                raise Mistake((*slot.path, "domain"), f"PCI domain {domain:#x} does not fit in 32 bits")
            bridge = self.direct.setdefault((domain, numa), Bridge(slot.path, numa, domain, None, None))
        bridge.slots.append(slot)

    def assign(self) -> None:
        """Give out bus numbers and addresses: those given by hand first."""
        bridges = [*self.switches.values(), *self.direct.values()]
        for bridge in bridges:
            for slot in bridge.slots:
                if slot.given:
                    key = (bridge.domain, int(slot.given.split(":")[1], 16))
                    self._used.setdefault(key, slot.path)
        for bridge in bridges:
            if bridge.bus is not None:
                for bus in range(bridge.bus, bridge.bus + 3):
                    taken = self._used.get((bridge.domain, bus))
                    if taken is not None:
                        raise Mistake((*bridge.path, "bus"), f"bus {bus:#04x} is in use by {_say(taken)}")
                    self._used[bridge.domain, bus] = bridge.path
        for bridge in bridges:
            if bridge.slots or bridge.model is not None:
                self._build(bridge)
        seen: set[str] = set()
        for function in self.functions:
            if function.address in seen:
                raise Mistake((), f"two functions are at PCI address {function.address}")
            seen.add(function.address)

    def _build(self, bridge: Bridge) -> None:
        own = bridge.own_buses
        free = sum(1 for slot in bridge.slots if not slot.given)
        if bridge.bus is None:
            first = self._free_run(bridge, own + free)
            buses = iter(range(first + own, first + own + free))
            for bus in range(first, first + own + free):
                self._used[bridge.domain, bus] = bridge.path
        else:
            first = bridge.bus
            buses = iter([bus for bus in range(first + own, 256) if (bridge.domain, bus) not in self._used][:free])
        domain = f"{bridge.domain:04x}"
        host = f"pci{domain}:{first:02x}"
        parents: dict[int, str] = {}
        speed = bridge.model.speed_gts if bridge.model else self.root_speed
        if bridge.model is not None:
            vendor, device = split_id(bridge.model.pci or "1000:c030", bridge.path)
            root = f"{domain}:{first:02x}:01.0"
            upstream = f"{domain}:{first + 1:02x}:00.0"
            self._bridge(root, host, self.root_vendor, self.root_device, bridge.numa, "root-port", speed)
            self._bridge(upstream, root, vendor, device, bridge.numa, "switch-upstream", speed)
        count = 0
        for slot in bridge.slots:
            if slot.given:
                bus = int(slot.given.split(":")[1], 16)
            else:
                try:
                    bus = next(buses)
                except StopIteration:
                    raise Mistake(slot.path, f"no bus number is left in PCI domain {domain}") from None
                self._used[bridge.domain, bus] = slot.path
            if bus not in parents:
                if count > 0xF7:
                    raise Mistake(slot.path, "more devices than one bridge has ports for")
                port = (
                    f"{1 + count % 31:02x}.{count // 31}" if bridge.model is None else f"{count % 32:02x}.{count // 32}"
                )
                count += 1
                if bridge.model is None:
                    parents[bus] = f"{domain}:{first:02x}:{port}"
                    self._bridge(
                        parents[bus], host, self.root_vendor, self.root_device, bridge.numa, "root-port", speed
                    )
                else:
                    parents[bus] = f"{domain}:{first + 2:02x}:{port}"
                    self._bridge(parents[bus], upstream, vendor, device, bridge.numa, "switch-downstream", speed)
            self._fill(slot, bridge, parents[bus], f"{domain}:{bus:02x}")

    def _fill(self, slot: Slot, bridge: Bridge, parent: str, bus: str) -> None:
        device, first = "00", 0
        if slot.given:
            device, _, number = slot.given.rpartition(":")[2].partition(".")
            first = int(number)
        for offset, what in enumerate(slot.functions):
            if first + offset > 7:
                raise Mistake((*slot.path, "pci"), "a PCI device has functions 0 to 7")
            address = f"{bus}:{device}.{first + offset}"
            if any(function.address == address for function in self.functions):
                raise Mistake((*slot.path, "pci"), f"PCI address {address} is used twice")
            other = next((f for f in self.functions if f.address.startswith(bus + ":") and f.parent != parent), None)
            if other is not None:
                raise Mistake((*slot.path, "pci"), f"bus {bus} is in use by {other.address} below {other.parent}")
            slot.addresses.append(address)
            self.functions.append(
                PciFunction(
                    address=address,
                    parent=parent,
                    vendor=what.vendor,
                    device=what.device,
                    class_code=what.class_code,
                    numa_node=bridge.numa,
                    subsystem_vendor=what.subsystem[0],
                    subsystem_device=what.subsystem[1],
                    driver=what.driver,
                    speed_gts=slot.speed_gts,
                    max_speed_gts=slot.max_speed_gts,
                    width=slot.width,
                    max_width=slot.max_width,
                    serial=what.serial,
                )
            )

    def _bridge(self, address: str, parent: str, vendor: str, device: str, numa: int, role: str, speed: float) -> None:
        self.functions.append(
            PciFunction(
                address=address,
                parent=parent,
                vendor=vendor,
                device=device,
                class_code=_BRIDGE_CLASS,
                numa_node=numa,
                driver="pcieport",
                speed_gts=speed,
                max_speed_gts=speed,
                width=16,
                max_width=16,
                role=role,
            )
        )

    def _free_run(self, bridge: Bridge, length: int) -> int:
        """Return the first bus of a free run: from 0x10 upwards, then below it."""
        starts: list[int] = [*range(0x10, 257 - length), *range(0x01, 0x10)]
        for first in starts:
            if first + length <= 256 and all(
                (bridge.domain, bus) not in self._used for bus in range(first, first + length)
            ):
                return first
        raise Mistake(
            bridge.path, f"no run of {length} bus numbers is free in PCI domain {bridge.domain:04x}", "domain = 1"
        )


def _say(path: Path) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else str(part) for part in path)
