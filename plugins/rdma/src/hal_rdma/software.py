"""RDMA NICs that are software: UCX over shared memory or TCP, on any machine, by ``HAL_RDMA_SOFTWARE``.

The variable names devices, divided by semicolons: ``shm``, ``tcp``, or ``name=transport,transport``, where the
transports are UCX's own words (``UCX_TLS``), ``shm`` standing for ``posix,cma``. They carry real bytes between real
processes, and their speed is the memory's or the loopback's: what a link would tell (a rate, a GUID) is absent, with
the reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from hal.drivers.contract import HostRoot
from hal.errors import InvalidArgument
from hal.model.attributes import Absence, Attribute
from hal.model.device import Device, Location
from hal.model.kind import Kind

SOFTWARE = "HAL_RDMA_SOFTWARE"
"""The variable that names the software NICs of this machine."""

_SOURCE = f"env:{SOFTWARE}"
_KNOWN = {"shm": ("posix", "cma"), "tcp": ("tcp",)}
_MACHINE_IDS = ("etc/machine-id", "var/lib/dbus/machine-id")
_MOST = 16


class SoftwareNic(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of ``HAL_RDMA_SOFTWARE``: its name, and the transports of UCX that carry its bytes."""

    name: str
    transports: tuple[str, ...]

    @property
    def shares_memory(self) -> bool:
        """True if both ends must be on one machine."""
        return any(transport in ("posix", "sysv", "cma", "xpmem", "knem") for transport in self.transports)

    @property
    def medium(self) -> str:
        """What carries the bytes, in words."""
        if self.shares_memory:
            return "shared memory"
        return "TCP" if "tcp" in self.transports else ", ".join(self.transports)


def parse_software(environ: Mapping[str, str]) -> tuple[SoftwareNic, ...]:
    """Return the software NICs that the environment asks for, none if it asks for none.

    Raises ``InvalidArgument`` for a name given twice, or one that is no plain word.
    """
    found: dict[str, SoftwareNic] = {}
    for entry in environ.get(SOFTWARE, "").split(";"):
        entry = entry.strip()
        if not entry:
            continue
        name, equals, words = entry.partition("=")
        name = name.strip()
        chosen = tuple(word.strip() for word in (words if equals else name).split(",") if word.strip())
        transports = tuple(dict.fromkeys(part for word in chosen for part in _KNOWN.get(word, (word,))))
        if not name or not _is_plain(name) or not transports or not all(_is_plain(word) for word in transports):
            raise _unreadable(entry, "is neither shm, tcp nor name=transport,transport")
        if not equals and name not in _KNOWN:
            raise _unreadable(entry, "names no transports")
        if name in found:
            raise _unreadable(entry, "names a device twice")
        found[name] = SoftwareNic(name=name, transports=transports)
    if len(found) > _MOST:
        raise _unreadable(f"{len(found)} devices", f"are more than {_MOST}")
    return tuple(found.values())


def _is_plain(word: str) -> bool:
    return word.isascii() and all(letter.isalnum() or letter in "-_" for letter in word)


def _unreadable(entry: str, why: str) -> InvalidArgument:
    return InvalidArgument(
        f"{SOFTWARE}: {entry[:60]!r} {why}", during="discover", hint=f"{SOFTWARE}='shm', 'tcp' or 'a=shm;b=shm'"
    )


def software_id(name: str, node: str, root: Path = Path("/")) -> str:
    """Return the id of a software NIC: the same at every boot of one machine, another on every other machine."""
    machine = ""
    for told in _MACHINE_IDS:
        try:
            machine = (root / told).read_text("ascii", "replace").strip()
        except OSError:
            continue
        if machine:
            break
    text = f"hal software rnic\0{machine or node}\0{name}"
    return "rnic-" + hashlib.sha256(text.encode()).hexdigest()[:16]


def software_devices(environ: Mapping[str, str], host: HostRoot, *, driver: str) -> tuple[Device, ...]:
    """Return the software NICs of the running machine; a recorded tree has none.

    Raises ``InvalidArgument`` for a variable that cannot be read, ``NotReady`` where no libucp can carry their bytes.
    """
    if host.root is not None:
        return ()
    nics = parse_software(environ)
    if nics:
        from hal_rdma.ucx.library import choose_library

        choose_library(environ, software=True)
    return tuple(_device(nic, host, driver) for nic in nics)


def _device(nic: SoftwareNic, host: HostRoot, driver: str) -> Device:
    no_link = Attribute(source=_SOURCE, absent=Absence.UNSUPPORTED, detail="software over UCX: there is no link")
    no_guid = Attribute(source=_SOURCE, absent=Absence.UNSUPPORTED, detail="software over UCX: no GUID was assigned")
    no_node = Attribute(source=_SOURCE, absent=Absence.UNSUPPORTED, detail="memory of whoever opens it")
    return Device(
        id=software_id(nic.name, host.node),
        kind=Kind.RNIC,
        name=nic.name,
        driver=driver,
        location=Location(node=host.node, rack=host.rack),
        aliases=("software:" + nic.name,),
        attributes={
            "software": Attribute(True, _SOURCE),
            "model": Attribute(f"software RDMA over UCX ({nic.medium})", _SOURCE),
            "transports": Attribute(nic.transports, _SOURCE),
            "ports": Attribute(1, _SOURCE),
            "port_state": Attribute("active", _SOURCE),
            "rate_gbps": no_link,
            "link_layer": no_link,
            "node_guid": no_guid,
            "numa_node": no_node,
        },
        allocatable=True,
    )


def transports_of(device: Device) -> tuple[str, ...]:
    """Return the transports of a software NIC, none for any other device."""
    told = device.value("transports") if device.value("software") is True else None
    return tuple(str(word) for word in told) if isinstance(told, tuple) else ()
