from __future__ import annotations

import msgspec
import pytest

from hal.testing.kinds.rnic import RnicConformance
from hal.testing.kinds.rnic_peer import DriverSpec
from hal_mocks.graph import Graph, Host, Numa, PciFunction, Rnic, RnicPort
from hal_mocks.machine import Machine
from hal_mocks.rnic import MockRnicDriver

LAYERS = ("InfiniBand", "Ethernet")


def rnic(index: int, layer: str, **fields) -> Rnic:
    port = RnicPort(
        link_layer=layer,
        rate_gbps=400.0,
        lid=7 + index if layer == "InfiniBand" else 0,
        gids=(f"fe80:0000:0000:0000:a088:c203:0070:100{index}",),
        gid_types=("IB/RoCE v1",),
    )
    facts = {
        "name": f"mlx5_{index}",
        "node_guid": f"a088:c203:0070:100{index}",
        "netdev": f"eth{index}",
        "mac": f"a0:88:c2:70:10:0{index}",
        "pci": "",
        "model": "ConnectX-7",
        "firmware": "28.39.1002",
        "board_id": "MT_0000000838",
        "ports": (port,),
    }
    return Rnic(**(facts | fields))


def graph(layer: str = "InfiniBand", seed: int = 1) -> Graph:
    """Two hosts of one rack with a NIC each, and a third NIC of the other link layer on the second host."""
    numa = (Numa(id=0, cpus="0-1", memory_bytes=1 << 30),)
    function = PciFunction(
        address="0000:17:00.0", parent="pci0000:15", vendor="15b3", device="1021", class_code="020700", numa_node=0
    )
    other = LAYERS[1 - LAYERS.index(layer)]
    return Graph(
        name="two-hosts",
        seed=seed,
        hosts=(
            Host(name="a", rack="r1", numa=numa, pci=(function,), rnics=(rnic(0, layer, pci="0000:17:00.0"),)),
            Host(name="b", rack="r1", numa=numa, rnics=(rnic(1, layer), rnic(2, other))),
        ),
    )


class _Examined(RnicConformance):
    lacks = frozenset({"scrub"})
    layer = "InfiniBand"

    @pytest.fixture
    def driver(self, tmp_path):
        self.folder = tmp_path / "machine"
        return MockRnicDriver(Machine(graph(self.layer), self.folder))

    def peer_driver_spec(self, driver):
        encoded = msgspec.json.encode(driver.machine.graph)
        return DriverSpec("hal_mocks.rnic", "rebuild_driver", (encoded, str(self.folder)))


class TestMockInfiniBand(_Examined):
    pass


class TestMockRoce(_Examined):
    lacks = _Examined.lacks | {"second-process"}
    layer = "Ethernet"
