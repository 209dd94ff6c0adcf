from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import DeviceNotFound
from hal.model.attributes import Absence, absent, known
from hal.model.device import Device, Link, Location
from hal.model.event import EventType
from hal.model.inventory import Inventory, diff, merge
from hal.model.kind import Kind


def device(id: str, kind: Kind = Kind.GPU, name: str = "", node: str = "n1", **fields: object) -> Device:
    return Device(
        id=id, kind=kind, name=name or id, driver=str(fields.pop("driver", "d")), location=Location(node=node), **fields
    )


def test_a_device_is_found_by_id_name_and_alias():
    gpu = device("GPU-1", name="gpu0", aliases=("pci:0000:17:00.0",))
    inventory = Inventory([gpu, device("GPU-2", name="gpu1")])
    for text in ("GPU-1", "gpu0", "n1/gpu0", "pci:0000:17:00.0", "0000:17:00.0"):
        assert inventory.get(text) is gpu


def test_an_ambiguous_name_names_the_candidates():
    inventory = Inventory([device("a", name="gpu0", node="n1"), device("b", name="gpu0", node="n2")])
    assert inventory.get("gpu0") is None
    with pytest.raises(DeviceNotFound, match="n1/gpu0, n2/gpu0"):
        inventory.find("gpu0")
    assert inventory.find("n2/gpu0").id == "b"


def test_devices_are_in_the_order_people_count():
    inventory = Inventory([device(f"g{i}", name=f"gpu{i}") for i in (10, 9, 1)])
    assert [d.name for d in inventory] == ["gpu1", "gpu9", "gpu10"]


def test_the_kernels_view_and_the_drivers_view_become_one_device():
    seen = device(
        "n1/pci/0000:17:00.0",
        driver="sysfs",
        aliases=("pci:0000:17:00.0",),
        attributes={"link_width": known(16, "sysfs"), "model": absent(Absence.DRIVER_NOT_BOUND, "sysfs")},
    )
    child = device("child", Kind.NVME, parent="n1/pci/0000:17:00.0")
    driven = device(
        "GPU-1",
        name="gpu0",
        driver="nvidia",
        aliases=("pci:0000:17:00.0", "uuid:GPU-1"),
        attributes={"model": known("H100", "nvml")},
        allocatable=True,
    )
    inventory = merge([(0, [seen, child]), (10, [driven])])
    assert [d.id for d in inventory.of_kind(Kind.GPU)] == ["GPU-1"]
    gpu = inventory.find("GPU-1")
    assert gpu.driver == "nvidia"
    assert gpu.allocatable
    assert gpu.value("link_width") == 16
    assert gpu.value("model") == "H100"
    assert [d.id for d in inventory.children("GPU-1")] == ["child"], "a parent's new name reaches its children"


def test_equal_addresses_on_two_nodes_are_two_devices():
    a = device("n1/pci/x", node="n1", aliases=("pci:0000:17:00.0",))
    b = device("n2/pci/x", node="n2", aliases=("pci:0000:17:00.0",))
    assert len(merge([(0, [a]), (10, [b])])) == 2


def test_functions_of_one_card_stay_apart_unless_one_is_a_bare_function():
    card = device("dpu-1", Kind.DPU, aliases=("pci:0000:03:00.0", "pci:0000:03:00.2"))
    nic = device("rnic-1", Kind.RNIC, aliases=("pci:0000:03:00.0",))
    management = device("n1/pci/0000:03:00.2", Kind.PCI, aliases=("pci:0000:03:00.2",))
    assert {d.id for d in merge([(0, [nic, management]), (10, [card])])} == {"dpu-1", "rnic-1"}


def test_a_difference_is_keyed_by_identity():
    before = Inventory([device("a", name="gpu0"), device("b", name="gpu1")])
    moved = device("b", name="gpu0", attributes={"numa_node": known(1, "sysfs")})
    changes = {(c.type, c.device.id): c.fields for c in diff(before, Inventory([moved, device("c")]))}
    assert set(changes) == {
        (EventType.REMOVED, "a"),
        (EventType.CHANGED, "b"),
        (EventType.ADDED, "c"),
    }
    assert "numa_node: nothing -> 1" in changes[EventType.CHANGED, "b"]


_devices = st.lists(
    st.builds(
        lambda i, kind, bus, links: device(
            f"d{i}",
            kind,
            aliases=(f"pci:0000:{bus:02x}:00.0",),
            links=tuple(Link(type="x", peer=f"d{p}") for p in links),
        ),
        st.integers(0, 8),
        st.sampled_from([Kind.GPU, Kind.RNIC, Kind.PCI]),
        st.integers(0, 5),
        st.lists(st.integers(0, 8), max_size=2),
    ),
    max_size=12,
)


@given(_devices, _devices)
def test_merging_loses_no_name_and_invents_none(low, high):
    merged = merge([(0, low), (10, high)])
    assert {a for d in merged for a in d.aliases} == {a for d in (*low, *high) for a in d.aliases}
    assert {d.id for d in merged} <= {d.id for d in (*low, *high)}
    assert len({d.id for d in merged}) == len(merged)


@given(_devices)
def test_nothing_differs_from_itself_and_a_round_trip_keeps_all(devices):
    inventory = Inventory({d.id: d for d in devices}.values())
    again = Inventory(msgspec.json.decode(msgspec.json.encode(inventory.devices), type=tuple[Device, ...]))
    assert diff(inventory, again) == ()
