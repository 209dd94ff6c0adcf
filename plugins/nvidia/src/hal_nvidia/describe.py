"""GPUs and MIG devices as devices of hal: identity from NVML, place from sysfs.

What the kernel's own view tells (NUMA node, bridges, PCI ids) is read by :mod:`hal.host`; what NVML tells besides is
named as the mocks name it. ``memory_bandwidth_bytes_per_second`` is computed from the memory's clock and bus width, two
transfers a cycle.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from hal.drivers.contract import HostRoot
from hal.errors import DriverError
from hal.host.pci import Function
from hal.host.scan import Scan
from hal.host.tree import HostTree
from hal.interfaces.gpu import Partition
from hal.model.attributes import Absence, Attribute, Value, absent, known
from hal.model.device import Device, Link, Location
from hal.model.kind import Kind
from hal_nvidia import errors as e
from hal_nvidia.board import Board, text
from hal_nvidia.telemetry import GTS

NAME = "nvidia"
_ARCHITECTURES = {
    2: "Kepler",
    3: "Maxwell",
    4: "Pascal",
    5: "Volta",
    6: "Turing",
    7: "Ampere",
    8: "Ada Lovelace",
    9: "Hopper",
    10: "Blackwell",
    13: "Rubin",
}
_CORES = {
    **dict.fromkeys(("7.0", "7.2", "7.5", "8.0"), 64),
    **dict.fromkeys(("8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "12.0"), 128),
}
_OF_THE_GPU = (
    "vendor",
    "architecture",
    "compute_capability",
    "numa_node",
    "pci_vendor",
    "pci_device",
    "driver_version",
)


def fact(call: Callable[..., Any] | None, *arguments: Any, convert: Callable[[Any], Value] = text) -> Attribute:
    """Return what one function of NVML tells as an attribute, or why it does not. A lost GPU is raised."""
    if call is None:
        return absent(Absence.UNSUPPORTED, e.SOURCE, "the binding is too old")
    try:
        return known(convert(call(*arguments)), e.SOURCE)
    except Exception as error:  # a guard around the library: one fact that it does not tell hides no other
        code = e.code_of(error)
        if code is None or code in e.LOST:
            raise
        return e.absent(error)


def identify(nvml: Any, handle: Any) -> dict[str, Attribute]:
    """Return what does not change while the driver is loaded."""

    def ask(name: str, *arguments: Any, convert: Callable[[Any], Value] = text) -> Attribute:
        return fact(getattr(nvml, name, None), handle, *arguments, convert=convert)

    facts = {
        "vendor": known("NVIDIA", e.SOURCE),
        "model": ask("nvmlDeviceGetName"),
        "uuid": ask("nvmlDeviceGetUUID"),
        "serial": ask("nvmlDeviceGetSerial"),
        "vbios_version": ask("nvmlDeviceGetVbiosVersion"),
        "architecture": ask("nvmlDeviceGetArchitecture", convert=lambda n: _ARCHITECTURES.get(n, f"architecture {n}")),
        "compute_capability": ask("nvmlDeviceGetCudaComputeCapability", convert=lambda pair: f"{pair[0]}.{pair[1]}"),
        "memory_bytes": ask("nvmlDeviceGetMemoryInfo", convert=lambda memory: int(memory.total)),
        "cuda_cores": ask("nvmlDeviceGetNumGpuCores", convert=int),
        "minor_number": ask("nvmlDeviceGetMinorNumber", convert=int),
        "power_limit_watts": ask("nvmlDeviceGetPowerManagementDefaultLimit", convert=lambda limit: limit / 1000),
        "coherent": ask("nvmlDeviceGetC2cModeInfoV1", convert=lambda info: bool(info.isC2cEnabled)),
        "link_max_speed_gts": ask("nvmlDeviceGetMaxPcieLinkGeneration", convert=lambda number: GTS[number]),
        "link_max_width": ask("nvmlDeviceGetMaxPcieLinkWidth", convert=int),
        "driver_version": fact(nvml.nvmlSystemGetDriverVersion),
        "cuda_version": fact(
            getattr(nvml, "nvmlSystemGetCudaDriverVersion_v2", None),
            convert=lambda number: f"{number // 1000}.{number % 1000 // 10}",
        ),
    }
    if facts["coherent"].absent is Absence.UNSUPPORTED:
        facts["coherent"] = known(False, e.SOURCE)  # no link to the processor that could be
    facts["multiprocessors"] = _multiprocessors(facts)
    pci = ask("nvmlDeviceGetPciInfo", convert=lambda info: int(info.pciDeviceId)).value
    if isinstance(pci, int):
        facts["pci_vendor"] = known(f"{pci & 0xFFFF:04x}", e.SOURCE)
        facts["pci_device"] = known(f"{pci >> 16:04x}", e.SOURCE)
    width = ask("nvmlDeviceGetMemoryBusWidth", convert=int).value
    clock = ask("nvmlDeviceGetMaxClockInfo", 2, convert=int).value
    facts["memory_bandwidth_bytes_per_second"] = (
        known(width / 8 * clock * 1e6 * 2, f"{e.SOURCE}:computed")
        if isinstance(width, int) and isinstance(clock, int)
        else absent(Absence.NOT_REPORTED, e.SOURCE)
    )
    return facts


def _multiprocessors(facts: Mapping[str, Attribute]) -> Attribute:
    """NVML counts cores; how many a multiprocessor has, CUDA's programming guide says by compute capability."""
    cores, capability = facts["cuda_cores"].value, facts["compute_capability"].value
    each = _CORES.get(str(capability))
    if not isinstance(cores, int) or each is None:
        return absent(Absence.UNSUPPORTED, e.SOURCE, "NVML tells it of MIG devices only")
    return known(cores // each, f"{e.SOURCE}:computed")


def modes(nvml: Any, handle: Any) -> dict[str, Attribute]:
    """Return what changes by decision: error correction and MIG, as they are and as the next reset makes them."""
    told: dict[str, Attribute] = {}
    for name, call in (("ecc_mode", nvml.nvmlDeviceGetEccMode), ("mig_mode", nvml.nvmlDeviceGetMigMode)):
        mode = fact(call, handle, convert=lambda pair: tuple(int(state) for state in pair))
        if not isinstance(mode.value, tuple):
            told[name] = mode
            continue
        current, pending = mode.value
        told[name] = known(_word(current), e.SOURCE)
        if pending != current:
            told[f"{name}_pending"] = known(_word(pending), e.SOURCE)
    told["link_speed_gts"] = fact(nvml.nvmlDeviceGetCurrPcieLinkGeneration, handle, convert=lambda n: GTS[n])
    told["link_width"] = fact(nvml.nvmlDeviceGetCurrPcieLinkWidth, handle, convert=int)
    return told


def _word(state: object) -> str:
    return "enabled" if state else "disabled"


class Places:
    """Where the PCI functions of this machine are, as sysfs tells; empty where there is no sysfs."""

    def __init__(self, host: HostRoot) -> None:
        self._host = host
        self._functions: Mapping[str, Function] = {}
        self._scan: Scan | None = None
        try:
            with HostTree(host.root) as tree:
                self._scan = Scan(tree, host.node, host.rack)
                self._functions = self._scan.functions
        except DriverError:
            pass
        gpus = (f for f in self._functions.values() if f.class_code[:4] in ("0300", "0302", "0380", "1200"))
        self._numbers = {function.address: number for number, function in enumerate(self._by_address(gpus))}
        self.nvidia = tuple(
            function.address
            for function in self._by_address(self._functions.values())
            if function.vendor == "10de" and function.class_code[:4] in ("0300", "0302") and function.driver == NAME
        )
        """Addresses of the GPUs that NVIDIA's kernel driver is bound to."""

    @staticmethod
    def _by_address(functions: Any) -> list[Function]:
        return sorted(functions, key=lambda function: function.address)

    @property
    def node(self) -> str:
        """The machine's name."""
        return self._host.node

    def name(self, address: str, index: int) -> str:
        """Return a GPU's short name, as host discovery numbers the GPUs of all vendors.

        One of which nothing is known but NVML's number has the name of its device file.
        """
        if not address:
            return f"{NAME}{index}"
        return f"gpu{self._numbers.get(address, index)}"

    def locate(self, address: str) -> Location:
        """Return where a function is; what sysfs does not tell is left open."""
        function = self._functions.get(address)
        if function is None or self._scan is None:
            return Location(node=self._host.node, rack=self._host.rack, pci_address=address or None)
        return self._scan.locate(function)

    def facts(self, address: str) -> dict[str, Attribute]:
        """Return what sysfs tells of a function."""
        function = self._functions.get(address)
        if function is None or self._scan is None:
            return {"numa_node": absent(Absence.NOT_REPORTED, "sysfs", "the kernel lists no function at this address")}
        return self._scan.facts(function)

    def off_the_bus(self, address: str) -> bool:
        """True if the function's configuration reads all ones: nothing answers at its address."""
        path = self._host.path("sys", "bus", "pci", "devices", address, "config")
        try:
            with open(path, "rb", buffering=0) as file:
                return file.read(4) == b"\xff\xff\xff\xff"
        except OSError:
            return False


def gpu_device(
    board: Board, places: Places, facts: Mapping[str, Attribute], links: tuple[Link, ...], *, lost: bool
) -> Device:
    """Return a GPU as a device; conditions and presence are added by the driver."""
    location = places.locate(board.address)
    attributes = {**places.facts(board.address), **board.identity, **facts}
    if not board.identity:  # lost before it told anything
        attributes["model"] = absent(Absence.DEVICE_LOST, e.SOURCE)
        attributes["uuid"] = known(board.uuid, "proc") if board.address else absent(Absence.DEVICE_LOST, e.SOURCE)
    memory = attributes.get("memory_bytes")
    coherent = board.identity.get("coherent")
    if coherent is not None and coherent.value is True and location.numa_node is not None:
        links += (Link(type="c2c", peer=f"{location.node}/cpu/{location.numa_node}"),)
    return Device(
        id=board.uuid,
        kind=Kind.GPU,
        name=places.name(board.address, board.index),
        driver=NAME,
        location=location,
        aliases=(f"pci:{board.address}", f"uuid:{board.uuid}") if board.address else (),
        attributes=attributes,
        capacity={"memory_bytes": memory.value} if memory is not None and isinstance(memory.value, int) else {},
        links=links,
        allocatable=not lost,
    )


def partition_device(gpu: Device, partition: Partition, multiprocessors: int | None) -> Device:
    """Return a MIG device as a child of its GPU, whose fate it shares."""
    attributes = {name: gpu.attributes[name] for name in _OF_THE_GPU if name in gpu.attributes}
    attributes |= {
        "model": known(f"{gpu.value('model')} MIG {partition.profile}", e.SOURCE),
        "uuid": known(partition.id, e.SOURCE),
        "memory_bytes": known(partition.memory_bytes, e.SOURCE),
        "mig_profile": known(partition.profile, e.SOURCE),
        "mig_start": known(partition.start, e.SOURCE),
        "compute_slices": known(partition.compute_slices, e.SOURCE),
    }
    if multiprocessors:
        attributes["multiprocessors"] = known(multiprocessors, e.SOURCE)
    return Device(
        id=partition.id,
        kind=Kind.GPU,
        name=f"{gpu.name}-mig{partition.start}",
        driver=NAME,
        location=msgspec.structs.replace(gpu.location),
        aliases=(f"uuid:{partition.id}",),
        attributes=attributes,
        capacity={"memory_bytes": partition.memory_bytes},
        parent=gpu.id,
        allocatable=gpu.allocatable,
    )


def kernel_addresses(root: str | None = None) -> tuple[str, ...]:
    """Return the addresses of the GPUs that the kernel driver has taken, whether or not they still answer."""
    try:
        return tuple(sorted(os.listdir(os.path.join(root or "/", "proc", "driver", "nvidia", "gpus"))))
    except OSError:
        return ()


def kernel_uuid(address: str, root: str | None = None) -> str | None:
    """Return the UUID that the kernel driver's own file tells, which outlives a GPU that answers no more."""
    path = os.path.join(root or "/", "proc", "driver", "nvidia", "gpus", address, "information")
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == "GPU UUID" and value.strip().startswith("GPU-") and "?" not in value:
                    return value.strip()
    except OSError:
        pass
    return None
