"""The sysfs tree of a mock machine: rendered on first use, kept in step with the faults, one folder a host."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from hal.drivers.contract import HostRoot
from hal_mocks.faults import Fault, FaultType
from hal_mocks.graph_cache import cached_header, code_stamp
from hal_mocks.sysfs_made import NOTHING, Made, as_made, made_on

if TYPE_CHECKING:
    from hal_mocks.graph import Host
    from hal_mocks.machine import Machine
    from hal_mocks.sysfs_files import Entry, Files


class Stamp(msgspec.Struct, frozen=True):
    """What the tree on disk shows: of which graph and code, the fault list's generation, and until when it is true."""

    key: str
    code: str
    generation: int
    until: float | None
    faults: tuple[Fault, ...]
    hosts: tuple[tuple[str, str], ...]
    made: Made = NOTHING


class Shown(msgspec.Struct, frozen=True):
    """What sysfs shows of a machine now, besides its graph: faults, and what devices have become; ``until`` when."""

    faults: tuple[Fault, ...]
    made: Made
    until: float | None


def shown(machine: Machine) -> Shown:
    """Return what the trees have to show now."""
    from hal_mocks.sysfs_faults import shown_faults

    now = machine.clock.now()
    every = machine.state.faults()
    changes = [change for change in (fault.next_change(now) for fault in every) if change is not None]
    return Shown(shown_faults(every, now), made_on(machine), min(changes) if changes else None)


_STAMP = msgspec.json.Decoder(Stamp)


def host_roots(environ: Mapping[str, str]) -> Sequence[HostRoot]:
    """Return the hosts of the machine that ``HAL_MACHINE`` names, their trees rendered and true now.

    When nothing has changed since the last call of any process, this neither loads the profile nor writes a file.
    """
    from hal_mocks.machine import machine_options, open_machine
    from hal_mocks.state import usable

    options = machine_options(environ)
    if options is None:
        return ()
    header = cached_header(options.folder, options.profile, options.seed)
    if header is not None and options.clock == "real":
        stamp = _read_stamp(options.folder)
        if stamp is not None and stamp.key == header.key and stamp.code == code_stamp():
            import time

            if stamp.generation == _generation(options.folder) and (stamp.until is None or time.time() < stamp.until):
                return _roots(options.folder, stamp)
    machine = open_machine(environ)
    if machine is None:
        return ()
    with usable(options.folder):
        return render(machine)


def render(machine: Machine) -> Sequence[HostRoot]:
    """Make the machine's trees and return them; those that are there and true are left as they are."""
    return _roots(machine.state.folder, _update(machine))


def sync(machine: Machine) -> None:
    """Bring trees that exist into step with the faults of now; a machine without trees gets none."""
    if (machine.state.folder / "sys" / "stamp.json").exists():
        _update(machine)


def host_folder(folder: Path, host: str) -> Path:
    """Return the folder that stands for a host's ``/``."""
    return folder / "sys" / host


def tree_of(host: Host, faults: Sequence[Fault] = (), made: Made = NOTHING) -> dict[str, Entry]:
    """Return a host's whole tree as a value. ``faults`` are those that sysfs shows, ``made`` what devices became."""
    from hal_mocks.sysfs_cpus import add_numa
    from hal_mocks.sysfs_devices import add_dpu, add_nvidia, add_nvme
    from hal_mocks.sysfs_faults import Faulty
    from hal_mocks.sysfs_files import Files
    from hal_mocks.sysfs_memory import add_pmem
    from hal_mocks.sysfs_network import add_nic, add_rnic
    from hal_mocks.sysfs_pci import add_pci, bus_ranges, device_paths
    from hal_mocks.sysfs_upmem import add_upmem_rank, upmem_vpd

    whole = as_made(host, made)
    faulty = Faulty(whole, faults)
    host = faulty.host
    names = (*(nic.name for nic in whole.rnics), *(nic.name for nic in whole.nics))
    nics = {name: index for index, name in enumerate(names)}  # a number does not change when a neighbour goes
    nvmes = {nvme.name: index for index, nvme in enumerate(whole.nvmes)}
    files = Files()
    paths = device_paths(host)
    numa = {function.address: function.numa_node for function in host.pci}
    for folder in ("sys/class/net", "sys/class/infiniband", "sys/class/nvme", "sys/bus/nd/devices", "dev"):
        files.folder(folder)
    # What a placeholder in /dev is: programs ask for the subsystem of its numbers.
    files.device("sys/devices/virtual/mem/null", "class/mem", {}, {"MAJOR": 1, "MINOR": 3, "DEVMODE": "0666"})
    add_numa(files, host)
    add_pci(files, host, paths, bus_ranges(whole))
    for rnic in host.rnics:
        views = faulty.ports(rnic.name, [port.rate_gbps for port in rnic.ports])
        add_rnic(files, rnic, nics[rnic.name], paths, views)
    for nic in host.nics:
        add_nic(files, nic, nics[nic.name], paths, faulty.ports(nic.name, [nic.rate_gbps])[0])
    for nvme in host.nvmes:
        add_nvme(files, nvme, nvmes[nvme.name], numa[nvme.pci], paths, live=not faulty.has(nvme.name, FaultType.LOST))
    for dpu in host.dpus:
        add_dpu(files, dpu, host, paths)
    add_nvidia(files, host, whole)
    add_pmem(files, host, paths, {region.name: faulty.region(region) for region in host.pmem})
    for module in whole.upmem_dimms:
        vpd = upmem_vpd([rank for rank in whole.upmem_ranks if rank.dimm == module.name])
        for rank in host.upmem_ranks:
            if rank.dimm == module.name:
                add_upmem_rank(files, module, rank, vpd)
    _hang(files, faulty.host, paths, (name for name in faulty.by_name if _hangs(faulty.by_name[name])))
    _add_quirks(files, host, paths)
    return files.entries


def _hangs(faults: Iterable[Fault]) -> bool:
    return any(fault.type is FaultType.HANG for fault in faults)


def _folders_of(host: Host, paths: Mapping[str, str], files: Files, name: str) -> list[str]:
    """Return the folders that show a device: those of its PCI functions, or its own."""
    from hal_mocks.sysfs_faults import functions_of

    found = [paths[address] for address in functions_of(host).get(name, ()) if address in paths]
    own = [path for path in files.entries if path.endswith(f"/{name}/uevent")]
    return found or [path.rpartition("/")[0] for path in own]


def _hang(files: Files, host: Host, paths: Mapping[str, str], names: Iterable[str]) -> None:
    """Put FIFOs in place of a device's attributes: reading one waits, as it does when a driver hangs."""
    from hal_mocks.sysfs_files import FIFO

    for name in names:
        for folder in _folders_of(host, paths, files, name):
            for path in files.below(folder):
                if isinstance(files.entries[path], bytes):
                    files.entries[path] = FIFO


def _add_quirks(files: Files, host: Host, paths: Mapping[str, str]) -> None:
    """Break single files as the profile wants them broken."""
    from hal_mocks.sysfs_files import FIFO, FOLDER, Hidden

    for quirk in host.quirks:
        path = quirk.path
        name, colon, below = path.partition(":{device}")
        if colon:
            folders = _folders_of(host, paths, files, name)
            if not folders:
                continue
            path = folders[0] + below
        path = _followed(files, path)
        if quirk.how == "missing":
            for entry in [path, *files.below(path)]:
                files.entries.pop(entry, None)
        elif quirk.how == "unreadable":
            old = files.entries.get(path)
            files.entries[path] = Hidden(old if isinstance(old, bytes) else b"")
        elif quirk.how == "fifo":
            files.entries[path] = FIFO
        elif quirk.how == "garbage":
            files.entries[path] = b"\xff\xfe\x80 not text\n"
        elif quirk.how == "value":
            files.file(path, quirk.value)
        else:
            files.entries[path] = FOLDER


def _followed(files: Files, path: str) -> str:
    """Return where a path below a bus's link to a function really is."""
    start, address, below = path.partition("sys/bus/pci/devices/")
    name, slash, rest = below.partition("/")
    link = files.entries.get(f"{address}{name}")
    if start or not slash or not isinstance(link, str):
        return path
    return f"sys/{link.removeprefix('../../../')}/{rest}"


def _update(machine: Machine) -> Stamp:
    """Bring the trees on disk to the faults of now, under a lock that other processes respect."""
    from hal_mocks.sysfs_files import write_all, write_changes

    folder = machine.state.folder
    key, code = machine.graph_key(), code_stamp()
    with machine.state.locked("sys.lock"):
        now = machine.clock.now()
        generation = machine.state.generation
        old = _read_stamp(folder)
        same = old is not None and (old.key, old.code) == (key, code)
        if same and old is not None and old.generation == generation and (old.until is None or now < old.until):
            return old
        at = shown(machine)
        hosts = tuple((host.name, host.rack) for host in machine.graph.hosts)
        stamp = Stamp(key, code, generation, at.until, at.faults, hosts, at.made)
        from hal_mocks.names import ids_of

        for host in machine.graph.hosts:
            where = str(host_folder(folder, host.name))
            if not same or old is None:
                write_all(where, tree_of(host, at.faults, at.made))
            elif (old.faults, old.made) != (at.faults, at.made):
                ids = ids_of(host)
                before = tuple(fault for fault in old.faults if fault.device in ids)
                after = tuple(fault for fault in at.faults if fault.device in ids)
                if before != after or as_made(host, old.made) != as_made(host, at.made):
                    write_changes(where, tree_of(host, before, old.made), tree_of(host, after, at.made))
        fresh = folder / "sys" / "stamp.new"
        fresh.write_bytes(msgspec.json.encode(stamp))
        fresh.replace(folder / "sys" / "stamp.json")
    return stamp


def _read_stamp(folder: Path) -> Stamp | None:
    try:
        return _STAMP.decode((folder / "sys" / "stamp.json").read_bytes())
    except (OSError, msgspec.MsgspecError):
        return None


def _generation(folder: Path) -> int:
    try:
        descriptor = os.open(folder / "control", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        return int.from_bytes(os.read(descriptor, 8), "little")
    finally:
        os.close(descriptor)


def _roots(folder: Path, stamp: Stamp) -> tuple[HostRoot, ...]:
    return tuple(
        HostRoot(node=name, root=str(host_folder(folder, name)), rack=rack or None) for name, rack in stamp.hosts
    )
