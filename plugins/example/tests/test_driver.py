"""What is special to the cards: files that are missing or lie, fences that outlive the driver, words about health."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from hal.drivers.contract import Cause, Context, DriverFactory, Grant, HostRoot
from hal.drivers.guard import OpenGuard
from hal.errors import DeviceGone, DeviceNotFound, StaleFence, Unsupported
from hal.interfaces.deadline import Deadline
from hal.interfaces.pmem import NamespaceMode, PersistenceDomain
from hal.model.attributes import Absence
from hal.model.health import Health, Presence
from hal_example import hal_drivers
from hal_example.driver import ExampleDriver
from hal_example.tree import write_tree

SOON = 10.0


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    write_tree(tmp_path, cards=2)
    return tmp_path


@pytest.fixture
def driver(machine: Path) -> ExampleDriver:
    return ExampleDriver([HostRoot(node="n1", root=str(machine))])


def attribute(machine: Path, name: str, card: int = 0) -> Path:
    return machine / "sys" / "class" / "acme" / f"acme{card}" / name


def first(driver: ExampleDriver):
    return driver.discover(Deadline.after(SOON)).devices[0]


def test_the_plugin_registers_without_touching_anything() -> None:
    (factory,) = hal_drivers()
    assert isinstance(factory, DriverFactory)
    nowhere = Context(hosts=(HostRoot(node="n", root="/nonexistent"),), environ={})
    assert factory.create(nowhere).readiness().cause is Cause.NO_DRIVER


def test_no_module_and_no_card_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "sys").mkdir()
    driver = ExampleDriver([HostRoot(node="n1", root=str(tmp_path))])
    assert (driver.readiness().cause, driver.readiness().remedy) == (Cause.NO_DRIVER, "modprobe acme")
    (tmp_path / "sys" / "class" / "acme").mkdir(parents=True)
    assert driver.readiness().cause is Cause.NO_HARDWARE
    write_tree(tmp_path)
    assert driver.readiness().ready


def test_cards_are_found_with_place_and_size(driver: ExampleDriver) -> None:
    one, two = driver.discover(Deadline.after(SOON)).devices
    assert (one.id, one.name, one.location.numa_node) == ("pmem-AC1000", "acme0", 0)
    assert (two.id, two.name, two.location.numa_node) == ("pmem-AC1001", "acme1", 1)
    assert one.capacity == {"memory_bytes": 4 << 20}
    assert one.health is Health.HEALTHY


def test_a_file_that_cannot_be_read_costs_one_attribute(machine: Path, driver: ExampleDriver) -> None:
    attribute(machine, "model").write_bytes(b"\xff\xfe")
    attribute(machine, "numa_node").write_text("-1\n")
    attribute(machine, "persistence_domain").unlink()
    os.mkfifo(attribute(machine, "persistence_domain"))
    card = first(driver)
    assert card.why_absent("model") is Absence.MALFORMED
    assert card.why_absent("numa_node") is Absence.NOT_REPORTED
    assert card.why_absent("persistence_domain") is Absence.TIMEOUT
    assert card.allocatable
    with driver.open(card.id, OpenGuard(), Deadline.after(SOON)) as memory:
        assert memory.region().persistence_domain is PersistenceDomain.NONE, "nobody promised more"


@pytest.mark.parametrize(
    ("word", "health"),
    [("ok", Health.HEALTHY), ("degraded", Health.DEGRADED), ("failed", Health.FAILED), ("", Health.UNKNOWN)],
)
def test_the_cards_word_becomes_a_condition(machine: Path, driver: ExampleDriver, word: str, health: Health) -> None:
    attribute(machine, "health").write_text(word)
    assert first(driver).health is health
    assert len(driver.sample(["pmem-AC1000"], Deadline.after(SOON))) == (word != "ok")


def test_a_card_without_its_memory_is_a_ghost_and_the_other_is_not(machine: Path, driver: ExampleDriver) -> None:
    (machine / "dev" / "acme0").unlink()
    gone, there = driver.discover(Deadline.after(SOON)).devices
    assert (gone.presence, gone.allocatable, gone.health) == (Presence.GHOST, False, Health.FAILED)
    assert there.allocatable
    with pytest.raises(DeviceGone):
        driver.prepare(gone.id, Grant(lease="a", fence=1), Deadline.after(SOON))
    driver.unprepare(gone.id, Grant(lease="a", fence=1), Deadline.after(SOON))


@pytest.mark.parametrize("path", ["/dev/../../outside", "relative", "/dev//acme0"])
def test_a_path_that_leads_out_of_the_tree_is_not_followed(machine: Path, driver: ExampleDriver, path: str) -> None:
    attribute(machine, "memory").write_text(path)
    assert first(driver).presence is Presence.GHOST


def test_the_fence_outlives_the_driver(machine: Path, driver: ExampleDriver) -> None:
    driver.prepare("pmem-AC1000", Grant(lease="new", fence=20), Deadline.after(SOON))
    later = ExampleDriver([HostRoot(node="n1", root=str(machine))])
    with pytest.raises(StaleFence):
        later.prepare("pmem-AC1000", Grant(lease="old", fence=19), Deadline.after(SOON))
    later.prepare("pmem-AC1001", Grant(lease="old", fence=19), Deadline.after(SOON))


def test_bytes_are_in_the_cards_memory_and_a_scrub_takes_them(machine: Path, driver: ExampleDriver) -> None:
    with driver.open("pmem-AC1000", OpenGuard(), Deadline.after(SOON)) as memory:
        memory.map("acme0.0").memcpy_persist(5000, b"kept")
    file = machine / "dev" / "acme0"
    assert file.read_bytes()[5000:5004] == b"kept"
    operation = driver.scrub("pmem-AC1000")
    operation.wait(Deadline.after(SOON))
    assert operation.progress == 1.0
    assert file.read_bytes() == bytes(4 << 20)


def test_telemetry_is_read_when_it_is_asked_for(machine: Path, driver: ExampleDriver) -> None:
    with driver.open("pmem-AC1000", OpenGuard(), Deadline.after(SOON)) as memory:
        attribute(machine, "temperature_celsius").write_text("77\n")
        assert memory.telemetry()["temperature_celsius"].value == 77
        assert memory.telemetry()["spares_percent"].absent is Absence.UNSUPPORTED


def test_the_only_namespace_stays(driver: ExampleDriver) -> None:
    with driver.open("pmem-AC1000", OpenGuard(), Deadline.after(SOON)) as memory:
        (namespace,) = memory.namespaces()
        for step in (
            lambda: memory.plan_create(NamespaceMode.DEVDAX, 2 << 20),
            lambda: memory.plan_destroy(namespace.name),
        ):
            with pytest.raises(Unsupported):
                step()


def test_an_array_that_was_handed_out_survives_closing(driver: ExampleDriver) -> None:
    with driver.open("pmem-AC1000", OpenGuard(), Deadline.after(SOON)) as memory:
        words = memory.map("acme0.0").array("u4")
    words[0] = 7
    assert words[0] == 7
    del words
    gc.collect()


def test_an_unknown_card_is_not_found(driver: ExampleDriver) -> None:
    with pytest.raises(DeviceNotFound):
        driver.sample(["pmem-none"], Deadline.after(SOON))
