"""One machine, several faces: the drivers in Python, the sysfs tree, the namespace and the fake libraries agree.

Each face is asked through the front door (a survey of all plugins): with ``HAL_MACHINE`` the mock drivers answer, with
``HAL_SYSFS_ROOT`` the plugins read a tree, and in the namespace they take the machine for the one they run on, NVML
included. What is compared is compared before, under and after the same faults.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import pytest

from hal.agent.survey import survey
from hal.model.device import Device, alias
from hal.model.health import Presence, Severity
from hal.model.kind import Kind
from hal_mocks.faults import FaultType
from hal_mocks.machine import open_machine
from mocks.tests.rooms import Inside, rooms

SHARED = {
    "pci_vendor", "pci_device", "pci_class", "pci_driver", "link_speed_gts", "link_width", "link_max_speed_gts",
    "link_max_width", "numa_node", "serial", "uuid", "model", "firmware",
    "memory_bytes", "size_bytes", "ecc_mode", "mig_mode", "partition_placements", "compute_capability",
    "multiprocessors", "power_limit_watts",
    "node_guid", "netdev", "port_state", "link_layer", "rate_gbps", "board_id", "gids", "gid_types",
    "generation", "mode", "max_vfs", "set_cookie", "dimms", "persistence_domain", "available_bytes", "read_only",
    "locked", "encrypted", "dpus", "disabled_dpus", "mram_bytes", "clock_hz", "control_interfaces", "dpus_per_ci",
    "rank_index", "channel",
}  # fmt: skip
"""What every face must tell alike that tells it at all.

Not among them is what a face works out by itself: bandwidths, granules."""

KINDS = {Kind.GPU, Kind.RNIC, Kind.DPU, Kind.PMEM, Kind.UPMEM, Kind.MEMORY, Kind.NVME}
SEEN_BY_ALL = {
    Kind.GPU: {"pci_device", "link_width"},
    Kind.RNIC: {"node_guid", "model", "port_state", "rate_gbps", "gids", "firmware", "link_speed_gts"},
    Kind.DPU: {"serial", "generation", "mode", "max_vfs"},
    Kind.PMEM: {"size_bytes", "set_cookie", "persistence_domain", "numa_node"},
    Kind.UPMEM: {"dpus", "disabled_dpus", "mram_bytes", "clock_hz", "serial"},
}
"""What must have been compared for a kind, lest agreement be silence."""

SLOW, BAD = {"generation": 6, "width": 2}, {"offset": 1 << 20, "length": 512}
FAULTS = {
    "dgx-h100": (
        ("gpu3", FaultType.LOST, {}),
        ("gpu5", FaultType.FALLEN_OFF_BUS, {}),
        ("mlx5_0", FaultType.LINK_DOWN, {}),
    ),
    "bluefield-host": (("mlx5_0", FaultType.LINK_DOWN, {}), ("mlx5_1", FaultType.LINK_DEGRADED, SLOW)),
    "optane-server": (("region0", FaultType.BAD_BLOCK, BAD), ("region1", FaultType.READ_ONLY, {})),
    "cxl-server": (("region1", FaultType.READ_ONLY, {}),),
    "upmem-server": (("dpu_rank3", FaultType.FALLEN_OFF_BUS, {}),),
}


@pytest.fixture(scope="module")
def inside(tmp_path_factory):
    with rooms(tmp_path_factory.mktemp("faces")) as make:
        yield make


def look(environ: Mapping[str, str]) -> list[Device]:
    found = survey(environ=environ, deadline_seconds=30.0)
    try:
        assert not [problem for problem in found.problems if problem.fatal or "is lost" not in problem.detail]
        return list(found.inventory)
    finally:
        found.close()


def faces_of(room: Inside) -> dict[str, dict[str, Device]]:
    """Return what each face shows, by a name that all have: the PCI address, or else the id."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HAL_")}
    stage = room.namespace.stage
    lists = {
        "driver": look({**clean, "HAL_MACHINE": stage.variables["HAL_MOCK_MACHINE"]}),
        "tree": look({**clean, "HAL_SYSFS_ROOT": stage.room.root}),
        "namespace": room.namespace.run(lambda: look(dict(os.environ))),
    }
    return {
        face: {
            (alias(device, "pci") if device.kind is Kind.GPU else None) or device.id: device
            for device in devices
            if device.kind in KINDS and not (device.kind is Kind.MEMORY and not device.id.startswith("dimm-"))
        }
        for face, devices in lists.items()
    }


def compare(faces: dict[str, dict[str, Device]]) -> dict[Kind, set[str]]:
    """Assert agreement; return which facts of which kinds were known to two faces."""
    ours = faces["driver"]
    compared: dict[Kind, set[str]] = {}
    for face, others in faces.items():
        assert others.keys() == ours.keys(), face
        for name, device in ours.items():
            other = others[name]
            where = f"{device.name} in the {face}"
            assert other.kind is device.kind, where
            assert other.parent == device.parent, where
            assert other.location.pci_path == device.location.pci_path, where
            assert other.location.node == device.location.node, where
            for fact in SHARED & device.attributes.keys() & other.attributes.keys():
                one, two = device.attributes[fact], other.attributes[fact]
                if one.known and two.known:
                    assert two.value == one.value, f"{fact} of {where}"
                    if face != "driver":
                        compared.setdefault(device.kind, set()).add(fact)
            for unit in device.capacity.keys() & other.capacity.keys():
                assert other.capacity[unit] == device.capacity[unit], f"capacity {unit} of {where}"
    return compared


@pytest.mark.parametrize("profile", sorted(FAULTS))
def test_all_faces_agree_before_under_and_after_faults(inside, profile):
    room = inside(profile)
    before = faces_of(room)
    compared = compare(before)
    for kind in {device.kind for device in before["driver"].values()} & SEEN_BY_ALL.keys():
        assert SEEN_BY_ALL[kind] <= compared[kind], kind
    for device, fault, details in FAULTS[profile]:
        room.machine.inject(device, fault, **details)
    under = faces_of(room)
    gone = [device for device in under["driver"].values() if device.presence is Presence.MISSING]
    for device in gone:  # the mock remembers what fell off; who looks at the bus does not find it
        name = alias(device, "pci") if device.kind is Kind.GPU else device.id
        del under["driver"][name]
        for devices in under.values():
            devices.pop(device.parent or "", None)  # nor how much a module holds of which a rank does not answer
            for ghost in [key for key, each in devices.items() if each.presence is Presence.GHOST]:
                if ghost == name or ghost.startswith(f"{device.location.node}/nvidia"):
                    del devices[ghost]  # NVML counts a GPU that has left the bus, and may have lost its name
    compare(under)
    assert under["driver"] != before["driver"]
    room.machine.heal()
    after = faces_of(room)
    compare(after)
    for face in ("driver", "tree"):
        assert facts_of(after[face]) == facts_of(before[face])


def facts_of(devices: dict[str, Device]) -> dict[str, dict[str, object]]:
    return {
        name: {fact: device.attributes[fact].value for fact in SHARED & device.attributes.keys()}
        for name, device in devices.items()
    }


def test_a_lost_gpu_a_dead_link_and_bad_blocks_are_conditions_on_every_face_that_can_know(inside):
    room = inside("dgx-h100")
    room.machine.inject("gpu3", FaultType.LOST)
    room.machine.inject("mlx5_2", FaultType.LINK_DOWN)
    (host,) = room.machine.graph.hosts
    nic = f"rnic-{host.rnics[2].node_guid.replace(':', '')}"
    for face, devices in faces_of(room).items():
        sick = {
            name for name, device in devices.items() if any(c.severity >= Severity.DEGRADED for c in device.conditions)
        }
        assert nic in sick, face
        assert (host.gpus[3].pci in sick) is (face != "tree"), face  # the bus does not show it: the driver says it
        assert sick <= {nic, host.gpus[3].pci}, face
    room.machine.heal()
    room = inside("optane-server")
    room.machine.inject("region0", FaultType.BAD_BLOCK, offset=0, length=4096)
    for face, devices in faces_of(room).items():
        sick = {device.name for device in devices.values() if "BadBlocks" in {one.type for one in device.conditions}}
        assert sick == {"region0"}, face
    room.machine.heal()


def test_a_mode_changed_and_a_namespace_made_at_run_time_show_on_every_face(inside, tmp_path):
    from hal.drivers.guard import OpenGuard
    from hal.interfaces.deadline import Deadline
    from hal.interfaces.dpu import DpuMode
    from hal.interfaces.pmem import NamespaceMode
    from hal_mocks.dpu import MockDpuDriver
    from hal_mocks.pmem import MockPmemDriver

    room = inside("bluefield-host")
    driver = MockDpuDriver(room.machine)
    card = next(device for device in driver.describe() if device.value("mode") == "dpu")
    assert room.machine.state.folder.is_dir()
    with driver.open(card.id, OpenGuard(), Deadline.after(60)) as handle:
        handle.set_mode(DpuMode.NIC)
        handle.power_cycle()
        for face, devices in faces_of(room).items():
            assert devices[card.id].value("mode") == "nic", face
    room = inside("optane-server")
    pmem = MockPmemDriver(room.machine)
    (region,) = (device for device in pmem.describe() if device.name == "region1")
    free = {face: devices[region.id].value("available_bytes") for face, devices in faces_of(room).items()}
    with pmem.open(region.id, OpenGuard(), Deadline.after(60)) as handle:
        handle.confirm(handle.plan_create(NamespaceMode.FSDAX, 64 << 20)).wait(Deadline.after(60))
        for face, devices in faces_of(room).items():
            now = devices[region.id].value("available_bytes")
            assert now is None or now == free[face] - (64 << 20), face


def test_a_second_process_opens_the_machine_that_the_namespace_shows(inside):
    room = inside("bluefield-host")
    machine = open_machine({"HAL_MACHINE": room.namespace.stage.variables["HAL_MOCK_MACHINE"]})
    assert machine is not None
    assert machine.graph == room.machine.graph
