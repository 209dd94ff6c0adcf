"""Bytes of pretended PCI functions: configuration space and vital product data."""

from __future__ import annotations

from collections.abc import Mapping

_PORT_TYPES = {"endpoint": 0, "root-port": 4, "switch-upstream": 5, "switch-downstream": 6, "pci-bridge": 7}
_LINK_SPEEDS = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}


def pci_config(
    vendor: str,
    device: str,
    class_code: str,
    role: str = "endpoint",
    *,
    link: tuple[float, int, float, int] | None = None,
) -> bytes:
    """Return 256 bytes of configuration space.

    ``link`` is speed in GT/s and width now, and both at most; with it there is a PCI Express capability, which says
    the role too (PCI Express Base Specification, 7.5.3).
    """
    data = bytearray(256)
    data[0:2] = int(vendor, 16).to_bytes(2, "little")
    data[2:4] = int(device, 16).to_bytes(2, "little")
    data[9:12] = int(class_code, 16).to_bytes(3, "little")
    data[14] = 0 if role == "endpoint" else 1
    if link is not None:
        speed, width, max_speed, max_width = link
        data[6] = 0x10  # there is a list of capabilities
        data[0x34] = 0x40
        data[0x40] = 0x10  # PCI Express
        data[0x42] = 2 | _PORT_TYPES[role] << 4
        data[0x4C:0x50] = (_LINK_SPEEDS.get(max_speed, 0) | max_width << 4).to_bytes(4, "little")
        data[0x52:0x54] = (_LINK_SPEEDS.get(speed, 0) | width << 4).to_bytes(2, "little")
    return bytes(data)


def pci_vpd(fields: Mapping[str, str], product: str = "fake product") -> bytes:
    """Return vital product data (PCI 2.2 appendix I): the product's name, then read-only fields."""
    body = b"".join(key.encode() + bytes([len(value)]) + value.encode() for key, value in fields.items())
    name = product.encode()
    return b"\x82" + len(name).to_bytes(2, "little") + name + b"\x90" + len(body).to_bytes(2, "little") + body + b"\x78"
