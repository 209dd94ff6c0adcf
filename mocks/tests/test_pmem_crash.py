"""Power failures: what may survive does or does not by seed, what must survive does, and wrong programs are caught."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.drivers.guard import OpenGuard
from hal.errors import DeviceGone, DeviceNotFound
from hal.interfaces.deadline import Deadline
from hal_mocks.clock import VirtualClock
from hal_mocks.graph import Graph, Host, Numa, PmemNamespace, PmemRegion
from hal_mocks.machine import Machine
from hal_mocks.pmem import MockPmemDriver
from hal_mocks.pmem_crash import power_failure, survivors

MIB = 1 << 20


def graph(domain: str = "memory_controller", hosts: tuple[str, ...] = ("node0",)) -> Graph:
    return Graph(
        name="crash-test",
        hosts=tuple(
            Host(
                name=name,
                numa=(Numa(id=0, cpus="0-1", memory_bytes=1 << 30),),
                pmem=(
                    PmemRegion(
                        name="region0",
                        numa_node=0,
                        set_cookie=f"0x{index + 1:016x}",
                        size_bytes=4 * MIB,
                        persistence_domain=domain,
                        media="optane",
                        dimms=(),
                        namespaces=(
                            PmemNamespace(name="namespace0.0", uuid=f"uuid-{name}", mode="devdax", size_bytes=4 * MIB),
                        ),
                    ),
                ),
            )
            for index, name in enumerate(hosts)
        ),
    )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(graph(), tmp_path / "machine", VirtualClock())


def mapped(machine: Machine, driver: MockPmemDriver | None = None):
    driver = driver or MockPmemDriver(machine)
    return driver.open("pmem-0000000000000001", OpenGuard(), Deadline.after(10)).map("namespace0.0")


RECORD = bytes(range(1, 97))


def append(mapping, *, forget_the_flush: bool = False) -> None:
    """A record of 96 bytes at 128, made valid by its length at 0. Right only if the record is durable first."""
    mapping.buffer[128:224] = RECORD
    if not forget_the_flush:
        mapping.persist(128, 96)
    mapping.buffer[0:8] = (96).to_bytes(8, "little")
    mapping.flush(0, 8)


def is_consistent(mapping) -> bool:
    length = int.from_bytes(mapping.read(0, 8), "little")
    return length == 0 or (length == 96 and mapping.read(128, 96) == RECORD)


def inconsistent_outcomes(machine: Machine, failures: int, **how: bool) -> tuple[int, set[int]]:
    driver = MockPmemDriver(machine)
    bad = 0
    lengths: set[int] = set()
    for seed in range(failures):
        mapping = mapped(machine, driver)
        mapping.memcpy_persist(0, bytes(256))
        append(mapping, **how)
        power_failure(machine, seed=seed)
        after = mapped(machine, driver)
        bad += not is_consistent(after)
        lengths.add(int.from_bytes(after.read(0, 8), "little"))
        after.close()
        mapping.close()
    return bad, lengths


def test_the_right_order_of_flushes_survives_thousands_of_power_failures(machine):
    bad, lengths = inconsistent_outcomes(machine, 2000)
    assert bad == 0
    assert lengths == {0, 96}, "the failures hit before and after the record became valid"


def test_a_missing_flush_is_caught(machine):
    bad, _ = inconsistent_outcomes(machine, 200, forget_the_flush=True)
    assert bad > 20


def test_what_was_drained_survives_and_what_was_not_may_not(machine):
    fates = set()
    for seed in range(40):
        mapping = mapped(machine)
        mapping.memcpy_persist(0, bytes(128))
        mapping.buffer[0:8] = b"durable!"
        mapping.persist(0, 8)
        mapping.buffer[64:72] = b"perhaps!"
        mapping.flush(64, 8)
        power_failure(machine, seed=seed)
        after = mapped(machine)
        assert after.read(0, 8) == b"durable!"
        fates.add(after.read(64, 8))
    assert fates == {bytes(8), b"perhaps!"}


def test_a_flush_covers_the_content_of_its_time_only(machine):
    seen = set()
    for seed in range(40):
        mapping = mapped(machine)
        mapping.memcpy_persist(0, bytes(64))
        mapping.buffer[0:8] = b"flushed!"
        mapping.flush(0, 8)
        mapping.buffer[0:8] = b"later..."
        mapping.drain()
        power_failure(machine, seed=seed)
        seen.add(mapped(machine).read(0, 8))
    assert seen == {b"flushed!", b"later..."}


def test_a_drain_orders_only_the_flushes_of_its_own_thread(machine):
    seen = set()
    for seed in range(30):
        mapping = mapped(machine)
        mapping.memcpy_persist(0, bytes(64))
        mapping.buffer[0:8] = b"others'!"
        other = threading.Thread(target=mapping.flush, args=(0, 8))
        other.start()
        other.join()
        mapping.drain()
        power_failure(machine, seed=seed)
        seen.add(mapped(machine).read(0, 8))
    assert seen == {bytes(8), b"others'!"}


def test_a_flush_takes_its_whole_line_along(machine):
    mapping = mapped(machine)
    mapping.buffer[0:64] = b"n" * 64
    mapping.persist(8, 1)
    power_failure(machine, seed=5)
    assert mapped(machine).read(0, 64) == b"n" * 64


def test_eight_aligned_bytes_are_never_torn(machine):
    torn = set()
    for seed in range(60):
        mapping = mapped(machine)
        mapping.memcpy_persist(0, bytes(64))
        mapping.buffer[0:64] = b"\xff" * 64
        power_failure(machine, seed=seed)
        words = np.frombuffer(mapped(machine).read(0, 64), dtype="u8")
        assert set(words.tolist()) <= {0, 2**64 - 1}
        torn.add(len(set(words.tolist())))
    assert torn == {1, 2}, "larger stores are"


def test_caches_within_the_domain_keep_every_store(tmp_path):
    machine = Machine(graph("cpu_cache"), tmp_path, VirtualClock())
    mapped(machine).buffer[0:6] = b"unsafe"
    (loss,) = power_failure(machine, seed=1)
    assert loss.dirty_words == 0
    assert mapped(machine).read(0, 6) == b"unsafe"


def test_volatile_memory_keeps_nothing_and_counts_nothing(tmp_path):
    machine = Machine(graph("none"), tmp_path, VirtualClock())
    mapping = mapped(machine)
    mapping.memcpy_persist(0, b"gone")
    power_failure(machine, seed=1)
    assert mapped(machine).read(0, 4) == bytes(4)


def test_open_handles_are_dead_and_the_shutdown_is_counted(machine):
    driver = MockPmemDriver(machine)
    device = driver.describe()[0]
    handle = driver.open(device.id, OpenGuard(), Deadline.after(10))
    mapping = handle.map("namespace0.0")
    power_failure(machine, seed=0)
    for step in (handle.telemetry, handle.namespaces, mapping.drain, lambda: mapping.read(0, 1)):
        with pytest.raises(DeviceGone, match="open it again"):
            step()
    again = driver.open(device.id, OpenGuard(), Deadline.after(10))
    assert again.telemetry()["dirty_shutdown_count"].value == 1


def test_stores_of_the_dead_reach_nobody(machine):
    mapping = mapped(machine)
    power_failure(machine, seed=0)
    mapping.buffer[0:5] = b"ghost"
    assert mapped(machine).read(0, 5) == bytes(5)


def test_cleared_poison_stays_zero(machine):
    for seed in range(6):
        mapping = mapped(machine)
        mapping.memcpy_persist(0, b"x" * 256)
        mapping.clear_poison(0, 256)
        power_failure(machine, seed=seed)
        assert mapped(machine).read(0, 256) == bytes(256)


def test_a_power_failure_brings_nothing_back_that_was_scrubbed(machine):
    mapped(machine).memcpy_persist(0, b"secret")
    MockPmemDriver(machine).scrub("pmem-0000000000000001").wait()
    power_failure(machine, seed=1)
    assert mapped(machine).read(0, 6) == bytes(6)


def test_power_fails_by_region_by_host_or_everywhere(tmp_path):
    machine = Machine(graph(hosts=("a", "b")), tmp_path, VirtualClock())
    assert [loss.region for loss in power_failure(machine, host="b", seed=0)] == ["pmem-0000000000000002"]
    assert len(power_failure(machine, seed=0)) == 2
    assert len(power_failure(machine, "pmem-0000000000000001", seed=0)) == 1
    with pytest.raises(DeviceNotFound):
        power_failure(machine, host="c")


def test_the_loss_is_told(machine):
    mapping = mapped(machine)
    mapping.buffer[0:24] = b"x" * 24
    mapping.buffer[640:648] = b"y" * 8
    (loss,) = power_failure(machine, seed=2)
    assert (loss.dirty_lines, loss.dirty_words) == (2, 4)
    kept = np.frombuffer(mapped(machine).read(0, 1024), dtype="u8")
    assert loss.kept_words == np.count_nonzero(kept)


Store = tuple[str, int, int, int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("store"), st.integers(0, 500), st.integers(1, 12), st.integers(1, 255)),
        st.tuples(st.sampled_from(["flush", "persist"]), st.integers(0, 500), st.integers(1, 12), st.just(0)),
        st.tuples(st.just("drain"), st.just(0), st.just(0), st.just(0)),
    ),
    max_size=25,
)


class Model:
    """The rules by the book: for each 8-byte word, the set of values that may be found after a power failure."""

    def __init__(self, size: int) -> None:
        self.view = bytearray(size)
        self.durable = bytearray(size)
        self.flushed: list[tuple[int, bytes]] = []

    def store(self, offset: int, length: int, value: int) -> None:
        self.view[offset : offset + length] = bytes([value]) * length

    def flush(self, offset: int, length: int, _: int) -> None:
        first, end = offset // 64 * 64, -(-(offset + length) // 64) * 64
        self.flushed.append((first, bytes(self.view[first:end])))

    def drain(self, *_: int) -> None:
        for first, content in self.flushed:
            self.durable[first : first + len(content)] = content
        self.flushed.clear()

    def persist(self, offset: int, length: int, _: int) -> None:
        self.flush(offset, length, 0)
        self.drain()

    def allows(self, image: bytes) -> bool:
        words = range(0, len(image), 8)
        return all(image[at : at + 8] in (self.view[at : at + 8], self.durable[at : at + 8]) for at in words)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, seed=st.integers(0, 1 << 32))
def test_only_what_the_model_allows_survives(tmp_path_factory, steps: list[Store], seed: int):
    machine = Machine(graph(), tmp_path_factory.mktemp("m"), VirtualClock())
    mapping = mapped(machine)
    model = Model(512 + 64)
    for verb, offset, length, value in steps:
        getattr(model, verb)(offset, length, value)
        if verb == "store":
            mapping.buffer[offset : offset + length] = bytes([value]) * length
        elif verb == "drain":
            mapping.drain()
        else:
            getattr(mapping, verb)(offset, length)
    power_failure(machine, seed=seed)
    assert model.allows(mapped(machine).read(0, 512 + 64))


@given(
    seed=st.integers(0, 1 << 32),
    words=st.lists(st.integers(0, 1000), min_size=1, max_size=60, unique=True).map(sorted),
)
def test_a_seed_decides(seed: int, words: list[int]):
    dirty = np.array(words)
    first, again = (survivors(random.Random(seed), dirty, 64) for _ in range(2))
    assert first.tolist() == again.tolist()


def test_the_same_seed_and_state_give_the_same_bytes(tmp_path):
    images = []
    for name in ("one", "two"):
        machine = Machine(msgspec.structs.replace(graph(), seed=9), tmp_path / name, VirtualClock())
        mapped(machine).buffer[0:4096] = bytes(range(256)) * 16
        power_failure(machine)
        images.append(mapped(machine).read(0, 4096))
    assert images[0] == images[1]
    assert images[0] not in (bytes(4096), bytes(range(256)) * 16)
