"""One typed graph a host: the single source of which every face of a mock machine is a projection."""

from __future__ import annotations

import msgspec


class Numa(msgspec.Struct, frozen=True, kw_only=True):
    """A NUMA node: its CPUs as a kernel list (``0-55,112-167``), memory, and distances to all nodes (ACPI SLIT)."""

    id: int
    cpus: str
    memory_bytes: int
    distances: tuple[int, ...] = (10,)


class PciFunction(msgspec.Struct, frozen=True, kw_only=True):
    """A PCI function or bridge. ``parent`` is a bridge's address, or a host bridge (``pci0000:15``).

    Link speed in GT/s as sysfs prints it (``32.0``), width in lanes; 0 where there is no link. ``role`` is one of
    ``root-port``, ``switch-upstream``, ``switch-downstream``, ``endpoint``.
    """

    address: str
    parent: str
    vendor: str
    device: str
    class_code: str
    numa_node: int = -1
    subsystem_vendor: str = "0000"
    subsystem_device: str = "0000"
    driver: str = ""
    speed_gts: float = 0.0
    max_speed_gts: float = 0.0
    width: int = 0
    max_width: int = 0
    role: str = "endpoint"
    serial: str = ""


class NvLink(msgspec.Struct, frozen=True, kw_only=True):
    """NVLink from a GPU: to ``peer`` (a GPU's name, or ``switch``), with so many links."""

    peer: str
    links: int
    bandwidth_bytes_per_second: float


class MigProfile(msgspec.Struct, frozen=True, kw_only=True):
    """A MIG profile: its slices, its memory, and at which memory slice an instance may start."""

    name: str
    compute_slices: int
    memory_slices: int
    memory_bytes: int
    placements: tuple[int, ...]


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU. ``mig`` is empty on boards without MIG."""

    name: str
    uuid: str
    pci: str
    model: str
    architecture: str
    compute_capability: str
    memory_bytes: int
    multiprocessors: int
    power_limit_watts: float
    memory_bandwidth_bytes_per_second: float
    serial: str = ""
    nvlinks: tuple[NvLink, ...] = ()
    mig: tuple[MigProfile, ...] = ()
    coherent: bool = False


class RnicPort(msgspec.Struct, frozen=True, kw_only=True):
    """A port of an RDMA NIC. ``link_layer`` is ``InfiniBand`` or ``Ethernet``; GIDs as eight groups of hex."""

    number: int = 1
    link_layer: str
    rate_gbps: float
    lid: int = 0
    gids: tuple[str, ...] = ()
    gid_types: tuple[str, ...] = ()


class Rnic(msgspec.Struct, frozen=True, kw_only=True):
    """An RDMA NIC. ``pci`` is empty for a soft one; ``node_guid`` has 16 hex digits."""

    name: str
    node_guid: str
    netdev: str
    mac: str
    pci: str
    model: str
    firmware: str
    board_id: str
    ports: tuple[RnicPort, ...]
    dpu: str = ""
    hca_type: str = ""


class Dpu(msgspec.Struct, frozen=True, kw_only=True):
    """A DPU card: it owns PCI functions, RDMA NICs, Arm cores, memory, perhaps NVMe, offload engines."""

    name: str
    serial: str
    psid: str
    generation: str
    pci: tuple[str, ...]
    rshim: str
    rnics: tuple[str, ...]
    cores: int
    memory_bytes: int
    mode: str = "dpu"
    firmware: str = ""
    offloads: tuple[str, ...] = ()
    max_vfs: int = 0
    nvme: tuple[str, ...] = ()
    privileged: bool = True


class Dimm(msgspec.Struct, frozen=True, kw_only=True):
    """A persistent DIMM (nmem) or CXL memory device that backs a region."""

    name: str
    id: str
    serial: str
    capacity_bytes: int
    media: str
    firmware: str = ""
    locked: bool = False
    encrypted: bool = False
    pci: str = ""


class PmemNamespace(msgspec.Struct, frozen=True, kw_only=True):
    """A namespace that exists from the beginning. ``mode`` is raw, sector, fsdax or devdax.

    ``offset_bytes`` counts from the start of the region; None: behind the one before it.
    """

    name: str
    uuid: str
    mode: str
    size_bytes: int
    offset_bytes: int | None = None


class PmemRegion(msgspec.Struct, frozen=True, kw_only=True):
    """Interleaved persistent (or volatile CXL) memory. ``persistence_domain`` is ``cpu_cache``,
    ``memory_controller`` or ``none``; ``set_cookie`` hex digits after ``0x``, or a UUID where nothing persists.
    """

    name: str
    numa_node: int
    set_cookie: str
    size_bytes: int
    persistence_domain: str
    media: str
    dimms: tuple[Dimm, ...]
    line_bytes: int = 64
    granule_bytes: int = 256
    namespaces: tuple[PmemNamespace, ...] = ()


class UpmemDimm(msgspec.Struct, frozen=True, kw_only=True):
    """An UPMEM DIMM and the ranks on it."""

    name: str
    serial: str
    part_number: str
    numa_node: int
    channel: int
    slot: int
    ranks: tuple[str, ...]


class UpmemRank(msgspec.Struct, frozen=True, kw_only=True):
    """A rank: ``control_interfaces`` x ``dpus_per_ci`` DRAM processing units, some of them disabled for good."""

    name: str
    dimm: str
    index: int
    control_interfaces: int = 8
    dpus_per_ci: int = 8
    mram_bytes: int = 64 << 20
    wram_bytes: int = 64 << 10
    iram_bytes: int = 24 << 10
    tasklets: int = 24
    clock_hz: int = 350_000_000
    chip: str = "v1A"
    disabled: tuple[int, ...] = ()


class Nic(msgspec.Struct, frozen=True, kw_only=True):
    """A network interface without RDMA."""

    name: str
    pci: str
    mac: str
    rate_gbps: float


class Nvme(msgspec.Struct, frozen=True, kw_only=True):
    """An NVMe controller and its first namespace."""

    name: str
    pci: str
    model: str
    serial: str
    size_bytes: int


class Quirk(msgspec.Struct, frozen=True, kw_only=True):
    """Something wrong with one file of the sysfs tree.

    ``how`` is ``missing``, ``unreadable``, ``fifo``, ``garbage`` (non-UTF-8 bytes), ``value`` (with ``value``) or
    ``plain-dir``.
    """

    path: str
    how: str
    value: str = ""


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """Everything in one machine."""

    name: str
    rack: str = ""
    cpu_model: str = ""
    numa: tuple[Numa, ...]
    pci: tuple[PciFunction, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    rnics: tuple[Rnic, ...] = ()
    dpus: tuple[Dpu, ...] = ()
    pmem: tuple[PmemRegion, ...] = ()
    upmem_dimms: tuple[UpmemDimm, ...] = ()
    upmem_ranks: tuple[UpmemRank, ...] = ()
    nics: tuple[Nic, ...] = ()
    nvmes: tuple[Nvme, ...] = ()
    quirks: tuple[Quirk, ...] = ()
    coherent: bool = True

    def pci_path(self, address: str) -> tuple[str, ...]:
        """Return the bridges above a function, host bridge first."""
        by_address = {function.address: function for function in self.pci}
        path: list[str] = []
        function = by_address.get(address)
        while function is not None:
            path.append(function.parent)
            function = by_address.get(function.parent)
        return tuple(reversed(path))

    def function(self, address: str) -> PciFunction | None:
        """Return the PCI function at an address."""
        return next((function for function in self.pci if function.address == address), None)


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """A mock machine: one host, or a rack of them."""

    name: str
    hosts: tuple[Host, ...]
    seed: int = 0
