"""The mock GPU passes the examination, and a mock broken on purpose does not."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
import pytest

from hal.drivers.guard import OpenGuard
from hal.errors import Unsupported
from hal.interfaces.deadline import Deadline
from hal.interfaces.gpu import Ancestor
from hal.model.attributes import Absence
from hal.testing.kinds.gpu import GpuConformance
from hal_mocks.clock import VirtualClock
from hal_mocks.gpu import MockGpuDriver
from hal_mocks.gpu_handle import MockGpuHandle
from hal_mocks.gpu_memory import Account
from hal_mocks.gpu_streams import MockStream
from hal_mocks.machine import Machine
from hal_mocks.profile import load_profile

DGX = load_profile("dgx-h100")


def without_mig(graph):
    """The same machine with older boards: no MIG, no row remapping."""
    hosts = tuple(
        msgspec.structs.replace(
            host,
            gpus=tuple(
                msgspec.structs.replace(gpu, architecture="Turing", compute_capability="7.5", model="T4", mig=())
                for gpu in host.gpus
            ),
        )
        for host in graph.hosts
    )
    return msgspec.structs.replace(graph, hosts=hosts)


class TestMockGpu(GpuConformance):
    @pytest.fixture
    def driver(self, tmp_path):
        return MockGpuDriver(Machine(DGX, tmp_path / "state", VirtualClock()))


class TestMockGpuOnRealTime(GpuConformance):
    @pytest.fixture
    def driver(self, tmp_path):
        return MockGpuDriver(Machine(load_profile("dgx-a100"), tmp_path / "state"))


class TestOldMockGpu(GpuConformance):
    lacks = frozenset({"mig", "row-remapping"})

    @pytest.fixture
    def driver(self, tmp_path):
        return MockGpuDriver(Machine(without_mig(DGX), tmp_path / "state", VirtualClock()))


@pytest.fixture
def driver(tmp_path):
    return MockGpuDriver(Machine(DGX, tmp_path / "state", VirtualClock()))


@pytest.fixture
def gpu(driver):
    with driver.open(next(iter(driver.boards.places)), OpenGuard(), Deadline.after(5)) as handle:
        yield handle


@dataclass
class Break:
    where: type
    verb: str
    how: object
    check: str


class LyingNumPy:
    def __getattr__(self, name):
        return getattr(np, name)

    def exp(self, x):
        return np.exp(x) * 1.001


BREAKS = [
    Break(MockGpuHandle, "copy_to_device", lambda self, s, t=None, **_: t or self.allocate(s.shape, s.dtype.name),
          "test_what_is_copied_comes_back"),
    Break(MockGpuHandle, "xp", property(lambda self: LyingNumPy()), "test_arrays_are_really_computed"),
    Break(Account, "take", lambda self, nbytes: None, "test_memory_is_counted_and_given_back"),
    Break(Account, "_collect", lambda self: None, "test_memory_that_nobody_refers_to_is_given_back"),
    Break(MockStream, "step", lambda self: self._work.clear(), "test_a_stream_runs_in_order"),
    Break(MockStream, "push", lambda self, work: (self._work.appendleft(work), self._handle._pending.append(self)),
          "test_a_stream_runs_in_order"),
    Break(MockStream, "wait", lambda self, event: None, "test_a_stream_waits_for_the_event_of_another"),
    Break(MockGpuHandle, "_drain", lambda self, deadline: None, "test_the_default_stream_waits_for_the_others"),
    Break(MockGpuHandle, "launch", lambda self, *_, **__: None, "test_a_kernel_computes_for_every_thread"),
]  # fmt: skip


@pytest.mark.parametrize("fault", BREAKS, ids=lambda fault: f"{fault.where.__name__}.{fault.verb}")
def test_the_examination_is_red_for_a_broken_mock(monkeypatch, gpu, fault):
    monkeypatch.setattr(fault.where, fault.verb, fault.how)
    with pytest.raises(AssertionError):
        getattr(GpuConformance(), fault.check)(gpu)


def test_a_gpu_is_described_by_the_profile(driver):
    device = driver.discover(Deadline.after(5)).devices[0]
    gpu = DGX.hosts[0].gpus[0]
    assert device.id == gpu.uuid
    assert device.name == gpu.name
    assert f"pci:{gpu.pci}" in device.aliases
    assert device.location.pci_path == DGX.hosts[0].pci_path(gpu.pci)
    assert device.value("model") == gpu.model
    assert {attribute.source for attribute in device.attributes.values()} == {"mock"}
    assert {link.peer for link in device.links if link.type == "nvlink"} == {g.uuid for g in DGX.hosts[0].gpus[1:]}


def test_a_board_without_mig_says_unsupported(tmp_path):
    driver = MockGpuDriver(Machine(without_mig(DGX), tmp_path, VirtualClock()))
    device = driver.discover(Deadline.after(5)).devices[0]
    assert device.why_absent("mig_mode") is Absence.UNSUPPORTED
    with driver.open(device.id, OpenGuard(), Deadline.after(5)) as gpu:
        for verb in (
            gpu.partitioning,
            gpu.partition_profiles,
            gpu.partitions,
            gpu.row_remapping,
            lambda: gpu.set_partitioning(True),
            lambda: gpu.create_partition("1g.10gb").wait(),
        ):
            with pytest.raises(Unsupported):
                verb()


def test_peers_are_told_from_the_wiring(gpu):
    peers = gpu.peers()
    assert len(peers) == 7
    assert all(peer.nvlinks == 18 and peer.through_switch for peer in peers)
    nodes = {g.uuid: DGX.hosts[0].function(g.pci).numa_node for g in DGX.hosts[0].gpus}
    for peer in peers:
        far = nodes[peer.device] != nodes[gpu.device.id]
        assert (peer.ancestor is Ancestor.SYSTEM) == far


def test_two_drivers_over_one_folder_tell_the_same(driver, tmp_path):
    other = MockGpuDriver(Machine(DGX, tmp_path / "state", driver.machine.clock))
    gpu = next(iter(driver.boards.places))
    driver.set_partitioning(gpu, True)
    driver.reset(gpu).wait()
    driver.create_partition(gpu, "3g.40gb").wait()
    deadline = Deadline.after(5)
    assert other.discover(deadline) == driver.discover(deadline)
    assert other.partitions(gpu) == driver.partitions(gpu)
