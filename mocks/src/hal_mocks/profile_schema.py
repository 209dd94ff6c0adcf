"""The TOML form of a profile: which tables and keys there are, and of which type.

A key of type ``Each…`` takes one value for all elements of its table, or a list with one for each. In strings ``{i}``
stands for the element's index from 0; ``{i+1}``, ``{i//2}`` and ``{i%2}`` compute with it, from left to right.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

EachText = str | list[str]
EachInt = int | list[int]
Count = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
Size = int | str
EachSize = int | str | list[int | str]


class Table(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What every table of a profile has: unknown keys are mistakes."""


class HostTable(Table, kw_only=True):
    """``[host]``: the machine itself. ``[[host]]``: machines of other profiles (``include``)."""

    include: str = ""
    count: Count = 1
    name: str = ""
    rack: str = ""
    cpu: str = ""
    coherent: bool = True
    distances: list[list[int]] | None = None


class NumaTable(Table, kw_only=True):
    """``[[numa]]``: NUMA nodes. Either cores and threads of each, or the kernel's list of CPUs."""

    count: Count = 1
    cores: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0
    threads: Annotated[int, msgspec.Meta(ge=1, le=8)] = 1
    cpus: EachText = ""
    memory: Size = 0


class SwitchTable(Table, kw_only=True):
    """``[[switch]]``: a PCIe switch below its own host bridge and root port."""

    count: Count = 1
    name: EachText = ""
    model: EachText = "PEX89144"
    numa: EachInt = 0
    domain: EachInt = 0
    bus: EachInt | None = None


class Attached(Table, kw_only=True):
    """What sits in a PCI slot: below a switch, or below a root port of its NUMA node."""

    count: Count = 1
    name: EachText = ""
    model: EachText = ""
    switch: EachText = ""
    numa: EachInt | None = None
    domain: EachInt = 0
    pci: EachText = ""
    serial: EachText = ""
    link_width: int | None = None
    link_speed_gts: float | None = None


class GpuTable(Attached, kw_only=True):
    """``[[gpu]]``. ``nvlink``: ``"switch"``, ``"mesh"`` (all to all), or links to each peer by name."""

    uuid: EachText = ""
    nvlink: Literal["none", "switch", "mesh"] | dict[str, int] = "none"
    coherent: bool = False
    memory: Size | None = None


class RnicTable(Attached, kw_only=True):
    """``[[rnic]]``: an RDMA function. ``soft``: an rxe over the network interface ``netdev``, without PCI."""

    guid: EachText = ""
    mac: EachText = ""
    netdev: EachText = ""
    firmware: str = ""
    ports: Annotated[int, msgspec.Meta(ge=1, le=8)] = 1
    link_layer: Literal["InfiniBand", "Ethernet"] | None = None
    rate_gbps: float | None = None
    soft: bool = False


class DpuTable(Attached, kw_only=True):
    """``[[dpu]]``: a card with its network functions and its management function."""

    mode: EachText = "dpu"
    psid: EachText = ""
    firmware: str = ""
    link_layer: Literal["InfiniBand", "Ethernet"] | None = None
    offloads: list[str] | None = None
    nvme: list[str] = []
    privileged: bool = True


class NicTable(Attached, kw_only=True):
    """``[[nic]]``: a network interface without RDMA."""

    mac: EachText = ""


class NvmeTable(Attached, kw_only=True):
    """``[[nvme]]``: a controller with one namespace."""

    size: EachSize | None = None


class PciTable(Attached, kw_only=True):
    """``[[pci]]``: any other PCI function, by its numbers."""

    vendor: str
    device: str
    class_code: str = msgspec.field(default="ff0000", name="class")
    driver: str = ""


class PmemTable(Attached, kw_only=True):
    """``[[pmem]]``: regions, each interleaved over ``dimms`` modules of a model (NVDIMMs, or CXL devices in slots)."""

    dimms: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    size: Size | None = None
    cookie: EachText = ""
    locked: bool = False
    encrypted: bool = False


class NamespaceTable(Table, kw_only=True):
    """``[[namespace]]``: part of a region that is in use from the beginning."""

    region: str
    mode: Literal["raw", "sector", "fsdax", "devdax"]
    size: Size
    name: str = ""
    uuid: str = ""


class UpmemTable(Table, kw_only=True):
    """``[[upmem]]``: DIMMs of DRAM processing units, each with its ranks."""

    count: Count = 1
    name: EachText = ""
    model: str = "UPMEM-E19-v1A"
    numa: EachInt = 0
    channel: EachInt | None = None
    slot: EachInt | None = None
    serial: EachText = ""


class DisabledTable(Table, kw_only=True):
    """``[[disabled]]``: UPMEM processing units that are off for good, by rank."""

    rank: str
    dpus: list[Annotated[int, msgspec.Meta(ge=0)]]


class QuirkTable(Table, kw_only=True):
    """``[[quirk]]``: something wrong with files of the sysfs tree. ``path`` starts below the root (``sys/…``);
    ``{device}`` in it is the folder of the device that ``of`` names.
    """

    path: str
    how: Literal["missing", "unreadable", "fifo", "garbage", "value", "plain-dir"]
    value: str = ""
    of: str = ""


class Profile(Table, kw_only=True):
    """A whole file."""

    summary: str = ""
    host: HostTable | list[HostTable] = msgspec.field(default_factory=HostTable)
    numa: list[NumaTable] = []
    switch: list[SwitchTable] = []
    gpu: list[GpuTable] = []
    rnic: list[RnicTable] = []
    dpu: list[DpuTable] = []
    nic: list[NicTable] = []
    nvme: list[NvmeTable] = []
    pci: list[PciTable] = []
    pmem: list[PmemTable] = []
    namespace: list[NamespaceTable] = []
    upmem: list[UpmemTable] = []
    disabled: list[DisabledTable] = []
    quirk: list[QuirkTable] = []
    model: dict[str, dict[str, dict[str, object]]] = {}


class Mistake(ValueError):
    """Something wrong at a path of the TOML document."""

    def __init__(self, path: tuple[str | int, ...], message: str, hint: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.message = message
        self.hint = hint
