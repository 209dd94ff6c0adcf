"""Machines built by hand, for tests that need devices and no discovery."""

from __future__ import annotations

from hal.model.attributes import Attribute, known
from hal.model.device import Device, Link, Location
from hal.model.health import Condition, Severity
from hal.model.kind import Kind

GIB = 1 << 30


def facts(source: str = "test", **values: object) -> dict[str, Attribute]:
    return {name: known(value, source) for name, value in values.items()}  # type: ignore[arg-type]


def device(kind: Kind, name: str, node: str = "n1", **more: object) -> Device:
    location = more.pop("location", None) or Location(
        node=node,
        rack=more.pop("rack", None),
        numa_node=more.pop("numa", None),
        pci_address=more.pop("pci", None),
        pci_path=more.pop("path", ()),
    )
    attributes = facts(**more.pop("facts", {}))  # type: ignore[arg-type]
    identity = more.pop("id", f"{node}/{kind.value}/{name}")
    return Device(id=identity, kind=kind, name=name, driver="test", location=location, attributes=attributes, **more)


def degraded(device_id: str, type: str = "LinkDegraded", severity: Severity = Severity.DEGRADED) -> Condition:
    return Condition(device=device_id, type=type, severity=severity, evidence="x8 instead of x16", source="test")


def gpu_server(node: str = "n1", rack: str | None = None, sick: bool = False) -> tuple[Device, ...]:
    """Two NUMA nodes, each with two switches, each with two GPUs and a NIC; an NVMe on NUMA node 0."""
    found: list[Device] = []
    place = {"node": node, "rack": rack}
    for numa in range(2):
        found.append(
            device(Kind.CPU, f"cpu{numa}", numa=numa, facts={"cpulist": f"{numa * 8}-{numa * 8 + 7}"}, **place)
        )
        found.append(
            device(Kind.MEMORY, f"memory{numa}", numa=numa, facts={"memory_bytes": 512 * GIB}, capacity={}, **place)
        )
        for switch in range(2):
            bus = 0x10 + numa * 0x40 + switch * 0x10
            bridge, root, up = f"pci0000:{bus:02x}", f"0000:{bus:02x}:01.0", f"0000:{bus + 1:02x}:00.0"
            for path, address in (((bridge,), root), ((bridge, root), up)):
                found.append(
                    device(Kind.SWITCH, address, numa=numa, pci=address, path=path, id=f"{node}/pci/{address}", **place)
                )
            for port in range(3):
                down, end = f"0000:{bus + 2:02x}:{port:02x}.0", f"0000:{bus + 3 + port:02x}:00.0"
                path = (bridge, root, up, down)
                found.append(
                    device(Kind.SWITCH, down, numa=numa, pci=down, path=path[:-1], id=f"{node}/pci/{down}", **place)
                )
                index = numa * 4 + switch * 2 + port
                if port == 2:
                    name = f"mlx5_{numa * 2 + switch}"
                    found.append(
                        device(
                            Kind.RNIC,
                            name,
                            id=f"rnic-{node}-{name}",
                            numa=numa,
                            pci=end,
                            path=path,
                            allocatable=True,
                            aliases=(f"pci:{end}", f"rdma:{name}"),
                            facts={"model": "ConnectX-7", "port_state": "ACTIVE", "rate_gbps": 400.0, **link(32.0, 16)},
                            **place,
                        )
                    )
                else:
                    uuid = f"GPU-{node}-{index}"
                    found.append(
                        device(
                            Kind.GPU,
                            f"gpu{index}",
                            id=uuid,
                            numa=numa,
                            pci=end,
                            path=path,
                            allocatable=True,
                            aliases=(f"pci:{end}",),
                            capacity={"memory_bytes": 80 * GIB},
                            links=(Link(type="nvlink", lanes=18, bandwidth_bytes_per_second=450e9),),
                            conditions=(degraded(uuid),) if sick and index == 3 else (),
                            facts={"model": "NVIDIA H100 80GB HBM3", "memory_bytes": 80 * GIB, **link(32.0, 16)},
                            **place,
                        )
                    )
    root = "0000:00:01.0"
    found.append(
        device(
            Kind.NVME,
            "nvme0",
            id=f"nvme-{node}",
            numa=0,
            pci="0000:01:00.0",
            path=("pci0000:00", root),
            facts={"model": "PM1743", "size_bytes": 3840 * 10**9, **link(32.0, 4)},
            **place,
        )
    )
    found.append(device(Kind.PMEM, "region0", id=f"pmem-{node}", numa=1, facts={"size_bytes": 512 * GIB}, **place))
    return tuple(found)


def link(speed: float, width: int) -> dict[str, object]:
    return {
        "link_speed_gts": speed,
        "link_width": width,
        "link_max_speed_gts": speed,
        "link_max_width": width,
    }
