"""PCI functions as the kernel shows them: attributes, configuration space, vital product data."""

from __future__ import annotations

from collections.abc import Mapping

from hal_mocks.graph import Host, PciFunction
from hal_mocks.sysfs_files import Files

_EXPRESS_TYPE = {"endpoint": 0, "root-port": 4, "switch-upstream": 5, "switch-downstream": 6}
_SPEED_CODE = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}
_CAPABILITY = 0x60
_RESOURCES = "\n".join(["0x0000000000000000 0x0000000000000000 0x0000000000000000"] * 13)


def device_paths(host: Host) -> dict[str, str]:
    """Return the folder of every PCI function (``sys/devices/pci0000:15/0000:15:01.0``)."""
    parents = {function.address: function.parent for function in host.pci}
    found: dict[str, str] = {}
    for address in parents:
        path: list[str] = []
        at = address
        while at in parents:
            path.append(at)
            at = parents[at]
        found[address] = "/".join(["sys/devices", at, *reversed(path)])
    return found


def add_pci(files: Files, host: Host, paths: dict[str, str], buses: Mapping[str, tuple[int, int]]) -> None:
    """Add all PCI functions and their host bridges. ``buses`` are the :func:`bus_ranges` of the sound host."""
    files.folder("sys/bus/pci/devices")
    cpus = {node.id: node.cpus for node in host.numa}
    everywhere = ",".join(node.cpus for node in host.numa if node.cpus)
    for function in host.pci:
        path = paths[function.address]
        attributes: dict[str, str | bytes | int] = {
            "vendor": f"0x{function.vendor}",
            "device": f"0x{function.device}",
            "subsystem_vendor": f"0x{function.subsystem_vendor}",
            "subsystem_device": f"0x{function.subsystem_device}",
            "class": f"0x{function.class_code}",
            "revision": "0x00",
            "irq": 0,
            "resource": _RESOURCES,
            "modalias": _modalias(function),
            "numa_node": function.numa_node,
            "local_cpulist": cpus.get(function.numa_node, everywhere),
            "config": config_space(function, buses.get(function.address)),
        }
        if function.max_width:
            attributes["current_link_speed"] = speed_text(function.speed_gts)
            attributes["current_link_width"] = function.width
            attributes["max_link_speed"] = speed_text(function.max_speed_gts)
            attributes["max_link_width"] = function.max_width
        if function.address in buses:
            attributes["secondary_bus_number"], attributes["subordinate_bus_number"] = buses[function.address]
        uevent = {
            "PCI_CLASS": f"{int(function.class_code, 16):X}",
            "PCI_ID": f"{function.vendor}:{function.device}".upper(),
            "PCI_SUBSYS_ID": f"{function.subsystem_vendor}:{function.subsystem_device}".upper(),
            "PCI_SLOT_NAME": function.address,
            "MODALIAS": attributes["modalias"],
        }
        files.device(path, "bus/pci", attributes, {k: str(v) for k, v in uevent.items()}, function.driver)


def speed_text(speed_gts: float) -> str:
    """Return a link speed as the kernel prints it."""
    return f"{speed_gts:.1f} GT/s PCIe" if speed_gts else "Unknown"


def config_space(function: PciFunction, buses: tuple[int, int] | None) -> bytes:
    """Return 256 bytes of configuration space: the header and a PCI Express capability (PCIe Base, 7.5)."""
    data = bytearray(256)
    data[0:2] = int(function.vendor, 16).to_bytes(2, "little")
    data[2:4] = int(function.device, 16).to_bytes(2, "little")
    data[4:6] = b"\x06\x00"
    data[9:12] = int(function.class_code, 16).to_bytes(3, "little")
    bridge = function.role != "endpoint"
    if bridge:
        data[0x0E] = 1
        bus = int(function.address.split(":")[1], 16)
        data[0x18:0x1B] = bytes((bus, *(buses or (0, 0))))
    else:
        data[0x2C:0x2E] = int(function.subsystem_vendor, 16).to_bytes(2, "little")
        data[0x2E:0x30] = int(function.subsystem_device, 16).to_bytes(2, "little")
    if function.max_width:
        data[6] = 0x10
        data[0x34] = _CAPABILITY
        at = _CAPABILITY
        data[at] = 0x10
        flags = 2 | _EXPRESS_TYPE.get(function.role, 0) << 4
        data[at + 2 : at + 4] = flags.to_bytes(2, "little")
        most = _SPEED_CODE.get(function.max_speed_gts, 0) | function.max_width << 4
        data[at + 0x0C : at + 0x10] = most.to_bytes(4, "little")
        now = _SPEED_CODE.get(function.speed_gts, 0) | function.width << 4
        data[at + 0x12 : at + 0x14] = now.to_bytes(2, "little")
    return bytes(data)


def vital_product_data(title: str, part_number: str, serial: str) -> bytes:
    """Return the ``vpd`` file of a card (PCI 2.2, appendix I)."""
    name = title.encode()
    fields = b"".join(
        key + bytes([len(value)]) + value for key, value in ((b"PN", part_number.encode()), (b"SN", serial.encode()))
    )
    fields += b"RV\x01"
    whole = b"\x82" + len(name).to_bytes(2, "little") + name
    whole += b"\x90" + (len(fields) + 1).to_bytes(2, "little") + fields
    return whole + bytes([-sum(whole) & 0xFF]) + b"\x78"


def _modalias(function: PciFunction) -> str:
    code = function.class_code.upper()
    return (
        f"pci:v0000{function.vendor.upper()}d0000{function.device.upper()}"
        f"sv0000{function.subsystem_vendor.upper()}sd0000{function.subsystem_device.upper()}"
        f"bc{code[:2]}sc{code[2:4]}i{code[4:]}"
    )


def bus_ranges(host: Host) -> dict[str, tuple[int, int]]:
    """Return secondary and subordinate bus number of every bridge."""
    found: dict[str, tuple[int, int]] = {}
    by_address = {function.address: function for function in host.pci}
    for function in host.pci:
        bus = int(function.address.split(":")[1], 16)
        above = by_address.get(function.parent)
        first = True
        while above is not None:
            low, high = found.get(above.address, (bus, bus))
            found[above.address] = (min(low, bus) if first else low, max(high, bus))
            first = False
            above = by_address.get(above.parent)
    return found
