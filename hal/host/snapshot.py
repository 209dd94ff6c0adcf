"""Record a whole host into one file, unprivileged and without what identifies it; ``--root`` replays it."""

from __future__ import annotations

import os

import msgspec

from hal.drivers.contract import HostRoot
from hal.errors import DriverError
from hal.host.driver import discover_tree
from hal.host.missing import ABSENT_LINK, EMPTY, NOT_THERE, Missing
from hal.host.pci import DEVICES
from hal.host.pcie import vpd_field
from hal.host.recorder import Recorder
from hal.host.redact import Pseudonyms
from hal.host.tarball import FILE, FOLDER, LINK, Tarball
from hal.host.tree import HostTree, Tree
from hal.model.attributes import Absence

_FUNCTION_FILES = (
    "vendor", "device", "class", "subsystem_vendor", "subsystem_device", "revision", "modalias", "resource", "enable",
    "local_cpulist", "current_link_speed", "current_link_width", "max_link_speed", "max_link_width", "boot_vga",
    "power_state", "sriov_totalvfs", "sriov_numvfs", "aer_dev_correctable", "aer_dev_nonfatal", "aer_dev_fatal",
    "ari_enabled", "irq",
)  # fmt: skip
_FUNCTION_LINKS = ("driver", "subsystem", "iommu_group", "physfn", "device")
_CLASSES = ("class/net", "class/infiniband", "class/nvme", "class/block", "class/dpu_rank", "class/drm")
_CLASS_FILES = ("uevent", "mtu", "type", "duplex", "phys_port_name", "transport", "size", "ro", "numa_node")
_COUNTERS = (
    "symbol_error", "link_downed", "link_error_recovery", "port_rcv_errors", "port_xmit_wait",
    "local_link_integrity_errors", "excessive_buffer_overrun_errors", "port_xmit_data", "port_rcv_data",
)  # fmt: skip
_IDENTITIES = frozenset(
    {
        "serial", "serial_number", "set_cookie", "unique_id", "wwid", "nguid", "eui64", "subsysnqn", "hostnqn",
        "hostid", "node_desc", "phys_switch_id", "product_serial",
    }
)  # fmt: skip
_VERSIONS = frozenset({"fw_ver", "firmware_rev", "firmware_version", "mcu_version", "hw_rev"})


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """What was recorded: where, how many entries, and which attributes could not be read."""

    path: str
    entries: int
    unreadable: tuple[str, ...]


def record(root: HostRoot, target: str, *, pseudonyms: Pseudonyms | None = None) -> Recording:
    """Write a snapshot of a machine (or of a recorded tree) to ``target``, a gzipped tar archive.

    It holds PCI, NUMA, network, RDMA, NVMe, persistent memory, CXL, UPMEM and rshim as sysfs lays them out. Serial
    numbers, MAC and IP addresses, GUIDs, GIDs, UUIDs and the host's name are pseudonyms that are stable within the
    snapshot; what the caller may not read is recorded as unreadable. Raises :class:`~hal.errors.DriverError`.
    """
    with HostTree(root.root, Recorder) as host:
        discover_tree(host, root)
        _look_further(host.sys)
        hidden = pseudonyms or Pseudonyms(names=_names_of(root, host))
        entries: dict[str, _Entry] = {}
        unreadable: list[str] = []
        for prefix, tree in (("sys", host.sys), ("proc", host.proc), ("dev", host.dev)):
            if isinstance(tree, Recorder):
                _collect(prefix, tree, hidden, entries, unreadable)
        entries["etc/hostname"] = (hidden.identity(root.node) + "\n").encode()
    try:
        _write(target, entries)
    except OSError as error:
        raise DriverError(
            f"{target} cannot be written: {error.strerror}", during="snapshot", hint="name a file in a folder of yours"
        ) from None
    return Recording(path=target, entries=len(entries), unreadable=tuple(sorted(unreadable)))


_Entry = bytes | str | Missing | None
"""A file's contents, a link's target, why a file could not be read, or None for a folder."""


def _names_of(root: HostRoot, host: HostTree) -> tuple[str, ...]:
    names = {root.node}
    if host.live:
        names |= {os.uname().nodename, os.uname().nodename.partition(".")[0]}
    return tuple(sorted((name for name in names if len(name) > 2 and name != "localhost"), key=len, reverse=True))


def _look_further(tree: Tree) -> None:
    """Ask for what discovery has no use for but a later reader of the snapshot, or lspci, may have."""
    for name in tree.names(DEVICES):
        path = tree.resolve(f"{DEVICES}/{name}")
        if path is None:
            continue
        descriptor = tree.open(path + "/config")
        if isinstance(descriptor, int):
            os.close(descriptor)
        tree.read_many(path, _FUNCTION_FILES)
        for link in _FUNCTION_LINKS:
            tree.link(f"{path}/{link}")
    for base in _CLASSES:
        for name in tree.names(base):
            path = tree.resolve(f"{base}/{name}")
            if path is None or path.startswith("devices/virtual/block"):
                continue
            tree.read_many(path, _CLASS_FILES)
            tree.link(path + "/device")
            tree.link(path + "/subsystem")
            if base == "class/infiniband":
                tree.read_many(path, ("node_type", "sys_image_guid", "node_desc", "hw_rev"))
                for port in tree.names(path + "/ports"):
                    tree.read_many(f"{path}/ports/{port}", ("phys_state", "lid", "sm_lid", "cap_mask"))
                    if tree.exists(f"{path}/ports/{port}/counters"):
                        tree.read_many(f"{path}/ports/{port}/counters", _COUNTERS)
    tree.read_many("devices/system/cpu", ("online", "possible", "present"))
    tree.read_many("devices/system/node", ("online", "possible", "has_cpu", "has_memory"))


def _collect(
    prefix: str, tree: Recorder, hidden: Pseudonyms, entries: dict[str, _Entry], unreadable: list[str]
) -> None:
    for path in tree.folders:
        if prefix == "sys" or path.startswith(("rshim", "driver")):
            entries[_name(prefix, path, hidden)] = None
    for path, target in tree.links.items():
        if prefix == "sys":
            entries[_name(prefix, path, hidden)] = target if target.startswith(ABSENT_LINK) else hidden.text(target)
    for path, found in tree.files.items():
        name = _name(prefix, path, hidden)
        if isinstance(found, bytes):
            entries[name] = _redact(path, found, hidden)
        elif found is EMPTY:
            entries[name] = b""
        elif found is not NOT_THERE and entries.get(name, found) is found:
            entries[name] = found
            unreadable.append(name)


def _name(prefix: str, path: str, hidden: Pseudonyms) -> str:
    return f"{prefix}/{hidden.text(path)}" if path else prefix


def _redact(path: str, data: bytes, hidden: Pseudonyms) -> bytes:
    leaf = path.rpartition("/")[2]
    if leaf == "config":
        return data[:256]  # serial numbers come later, in the extended space
    if leaf == "vpd":
        return _redact_vpd(data, hidden)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return b"\xff\n"  # as unreadable as it was, and nothing of it
    if leaf == "cpuinfo":
        return "".join(line + "\n" for line in text.split("\n") if line.startswith("model name")).encode()
    if leaf in _VERSIONS:
        return data
    body = text.strip("\0 \n")
    if leaf in _IDENTITIES:
        return (hidden.identity(body) + "\n").encode()
    if path.endswith("/nfit/id"):
        head, dash, serial = body.rpartition("-")
        return f"{head}{dash}{hidden.identity(serial)}\n".encode()
    return hidden.text(text).encode()


def _redact_vpd(data: bytes, hidden: Pseudonyms) -> bytes:
    """Return vital product data with the part number and a pseudonym of the serial number, and nothing else."""
    body = b""
    for field in ("PN", "SN"):
        value = vpd_field(data, field)
        if value is not None:
            text = (hidden.identity(value) if field == "SN" else value).encode("ascii", "replace")[:255]
            body += field.encode() + bytes([len(text)]) + text
    return b"\x90" + len(body).to_bytes(2, "little") + body + b"\x78"


def _write(target: str, entries: dict[str, _Entry]) -> None:
    folders: set[str] = set()
    for name in entries:
        parent = name.rpartition("/")[0]
        while parent and parent not in folders:
            folders.add(parent)
            parent = parent.rpartition("/")[0]
    for folder in folders:
        entries[folder] = None  # something is below it, so it is one, whatever a broken tree says
    archive = Tarball()
    for name in sorted(entries):
        entry = entries[name]
        if entry is None:
            archive.add(name, FOLDER, mode=0o755)
        elif isinstance(entry, str):
            archive.add(name, LINK, link=entry)
        elif isinstance(entry, bytes):
            archive.add(name, FILE, data=entry)
        elif entry.reason is Absence.PERMISSION:
            archive.add(name, FILE, mode=0)
        else:
            archive.add(name, LINK, link=f"{ABSENT_LINK}{entry.reason.value}:{entry.detail}".replace("/", " "))
    scratch = f"{target}.{os.getpid()}.part"
    try:
        with open(scratch, "wb") as file:
            file.write(archive.finish())
        os.replace(scratch, target)
    finally:
        if os.path.lexists(scratch):
            os.unlink(scratch)
