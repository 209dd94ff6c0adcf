"""A device in the variables of Kubernetes' dynamic resource allocation (DRA).

A name that DRA has a driver for is answered as that driver does: NVIDIA's (``gpu.nvidia.com``), AMD's
(``gpu.amd.com``) and dranet (``dra.net``); any other driver ``x`` is ``x.hal``. Beside the driver's own names stand
ours, in the driver's domain and, the same for every driver, in ``hal``. The table is in docs/reference/selectors.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hal.model.cel_values import Domains, Quantity, Semver, parse_semver
from hal.model.device import Device, alias
from hal.model.kind import Kind
from hal.model.selector import COMMON

Path = tuple[str, ...]
"""``("driver",)``, ``("attributes", domain, name)``, ``("capacity", domain)``, ``("attributes",)``, ``()``…"""
ALLOW_MULTIPLE = "allowMultipleAllocations"
FIELDS = ("driver", "attributes", "capacity", ALLOW_MULTIPLE)
EVERY = "hal"
"""The domain in which our own names are, whatever the driver."""
KUBERNETES = "resource.kubernetes.io"
NVIDIA, AMD, DRANET = "gpu.nvidia.com", "gpu.amd.com", "dra.net"
_DRIVERS = {
    ("nvidia", Kind.GPU): NVIDIA,
    ("amd", Kind.GPU): AMD,
    ("rdma", Kind.RNIC): DRANET,
    ("mock-rnic", Kind.RNIC): DRANET,
}
_ABSENT = (None, "")


def domain_of(device: Device) -> str:
    """Return the driver as DRA would call it: the domain of its attributes."""
    if device.driver == "mock-gpu":
        return AMD if str(device.value("vendor") or "").startswith(("AMD", "Advanced Micro")) else NVIDIA
    return _DRIVERS.get((device.driver, device.kind)) or f"{device.driver}.hal"


def _text(name: str) -> Callable[[Device], object]:
    def read(device: Device) -> object:
        value = device.value(name)
        return value if isinstance(value, str) else None

    return read


def _version(*names: str) -> Callable[[Device], object]:
    def read(device: Device) -> Semver | None:
        for name in names:
            value = device.value(name)
            if isinstance(value, str | float) and not isinstance(value, bool):
                found = parse_semver(str(value), normalize=True)
                if found is not None:
                    return found
        return None

    return read


def _profile(device: Device) -> object:
    return device.value("mig_profile")


def _product(device: Device) -> object:
    """The GPU's product; DRA gives a partition that of its parent."""
    model, profile = device.value("model"), _profile(device)
    return model.removesuffix(f" MIG {profile}") if isinstance(model, str) and profile else model


def _pci(device: Device) -> object:
    return device.location.pci_address


def _pci_root(device: Device) -> object:
    return device.location.pci_path[0] if device.location.pci_path else None


def _numa(device: Device) -> object:
    return COMMON["numa_node"](device)


Table = Mapping[str, Callable[[Device], object]]
_NVIDIA: Table = {
    "type": lambda device: "mig" if _profile(device) else "gpu",
    "uuid": _text("uuid"),
    "productName": _product,
    "brand": _text("brand"),
    "architecture": _text("architecture"),
    "cudaComputeCapability": _version("compute_capability"),
    "driverVersion": _version("driver_version"),
    "cudaDriverVersion": _version("cuda_driver_version", "cuda_version"),
    "pcieBusID": _pci,
    "profile": _profile,
    "parentUUID": lambda device: device.parent if _profile(device) else None,
    "numaNode": _numa,
}
_AMD: Table = {
    "type": lambda device: "amdgpu-partition" if device.parent else "amdgpu",
    "productName": _product,
    "driverVersion": _version("driver_version"),
    "pciAddr": _pci,
    "numaNode": _numa,
}
_DRANET: Table = {
    "rdma": lambda device: True,
    "rdmaDevice": lambda device: alias(device, "rdma") or device.name,
    "ifName": lambda device: alias(device, "netdev"),
    "mac": _text("mac"),
    "numaNode": _numa,
    "pciAddress": _pci,
}
_KUBERNETES: Table = {"pcieRoot": _pci_root, "pciBusID": _pci, "numaNode": _numa}
_KNOWN: Mapping[str, Table] = {NVIDIA: _NVIDIA, AMD: _AMD, DRANET: _DRANET}
CAPACITIES = {"memory_bytes": "memory", "size_bytes": "size"}
"""Ours, and what DRA calls them."""
_COUNTED = ("multiprocessors",)


def reader(path: Path) -> Callable[[Device], object]:
    """Return the function that reads a variable from a device; None stands for what the device does not have."""
    match path:
        case ():
            return variables
        case ("driver",):
            return domain_of
        case (name,) if name == ALLOW_MULTIPLE:
            return lambda device: device.allocatable
        case (section,):
            return lambda device: _domains(device, section)
        case (section, domain):
            return lambda device: _members(device, section, domain)
        case ("attributes", domain, name):
            return lambda device: _attribute(device, domain, name)
        case (_, domain, name):
            return lambda device: _capacity(device, domain, name)
        case _:
            raise ValueError(path)


def variables(device: Device) -> dict[str, object]:
    """Return the whole of ``device``, as an expression sees it."""
    return {name: reader((name,))(device) for name in FIELDS}


def _attribute(device: Device, domain: str, name: str) -> object:
    if domain == KUBERNETES:
        read = _KUBERNETES.get(name)
        return read(device) if read is not None else None
    if domain != EVERY:
        if domain != domain_of(device):
            return None
        read = _KNOWN.get(domain, {}).get(name)
        if read is not None:
            value = read(device)
            if value not in _ABSENT:
                return value
    common = COMMON.get(name)
    value = common(device) if common is not None else None
    return device.value(name) if value is None else value


def _capacity(device: Device, domain: str, name: str) -> Quantity | None:
    if domain not in (EVERY, domain_of(device)):
        return None
    amount: object = device.capacity.get(name)
    if amount is None:
        amount = next((device.capacity.get(ours) for ours, theirs in CAPACITIES.items() if theirs == name), None)
    if amount is None and name in _COUNTED:
        amount = device.value(name)
    return Quantity(amount) if isinstance(amount, int) and not isinstance(amount, bool) else None


def _members(device: Device, section: str, domain: str) -> dict[str, object]:
    found: dict[str, object] = {}
    if section == "attributes":
        names: list[str] = []
        if domain == KUBERNETES:
            names = list(_KUBERNETES)
        elif domain in (EVERY, domain_of(device)):
            names = [*COMMON, *device.attributes, *_KNOWN.get(domain, ())]
        found = {name: _attribute(device, domain, name) for name in names}
    elif domain in (EVERY, domain_of(device)):
        theirs = [CAPACITIES[name] for name in device.capacity if name in CAPACITIES]
        found = {name: _capacity(device, domain, name) for name in (*device.capacity, *theirs, *_COUNTED)}
    return {name: value for name, value in found.items() if value is not None}


def _domains(device: Device, section: str) -> Domains:
    domains = (domain_of(device), EVERY, *([KUBERNETES] if section == "attributes" else []))
    return Domains({domain: members for domain in domains if (members := _members(device, section, domain))})


def qualified(name: str) -> Callable[[Device], object]:
    """Return the reader of an attribute as DRA's constraints name it: ``resource.kubernetes.io/pcieRoot``."""
    domain, _, attribute = name.partition("/")
    return reader(("attributes", domain, attribute))
