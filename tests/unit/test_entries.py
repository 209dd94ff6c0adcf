"""What is known of installed plugins survives from one process to the next, and a change of the path is noticed."""

from __future__ import annotations

import os
import sys

import pytest

from hal.drivers import entries
from hal.drivers.entries import DriverFacts, Entry, installed, remember, source_stamp
from hal.drivers.match import Match
from hal.model.kind import Kind


@pytest.fixture
def site(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [str(folder), str(tmp_path / "not-there")])
    return folder


@pytest.fixture
def environ(tmp_path):
    return {"XDG_CACHE_HOME": str(tmp_path / "cache")}


@pytest.fixture
def scans(monkeypatch):
    """Count how often all packages are looked at."""
    counted = []
    scan = entries._scan
    monkeypatch.setattr(entries, "_scan", lambda: counted.append(1) or scan())
    return counted


def install(site, name):
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[hal.plugins]\n{name} = {name}_module\n")


def test_what_a_plugin_registered_comes_back_as_it_was(site, environ):
    install(site, "one")
    (entry,) = installed(environ)
    facts = DriverFacts(
        name="one",
        kinds=(Kind.GPU, Kind.PMEM),
        matches=(
            Match(kind=Kind.GPU, pci_vendor="10de", pci_devices=("2330", "2331"), pci_class="03", model="H100"),
            Match(subsystem="class/infiniband"),
            Match(environment="HAL_MACHINE"),
        ),
        priority=7,
        brings_hosts=True,
    )
    known = Entry(
        name=entry.name,
        module=entry.module,
        distribution="one",
        version="1.0",
        drivers=(facts, DriverFacts(name="two", kinds=())),
        stamp=source_stamp(__file__),
    )
    remember((known,), environ)
    assert installed(environ) == (known,)


def test_an_unrelated_change_of_a_folder_costs_no_look_at_all_packages(site, environ, scans):
    install(site, "one")
    before = installed(environ)
    (site / ".tool_cache").mkdir()
    os.utime(site, ns=(1, 1))
    assert installed(environ) == before
    os.utime(site, ns=(2, 2))
    assert installed(environ) == before
    assert len(scans) == 1


def test_a_folder_that_changed_a_moment_ago_is_looked_into_again(site, environ, scans):
    assert installed(environ) == ()
    stamp = os.stat(site).st_mtime_ns
    install(site, "one")
    os.utime(site, ns=(stamp, stamp))  # within one tick of the file system's clock
    installed(environ)
    assert len(scans) == 2


def test_a_package_that_comes_or_goes_is_noticed(site, environ, scans):
    install(site, "one")
    assert [entry.name for entry in installed(environ)] == ["one"]
    install(site, "two")
    assert [entry.name for entry in installed(environ)] == ["one", "two"]
    for file in (site / "one-1.0.dist-info").iterdir():
        file.unlink()
    (site / "one-1.0.dist-info").rmdir()
    assert [entry.name for entry in installed(environ)] == ["two"]
    assert len(scans) == 3


def test_what_was_learned_before_a_package_came_is_not_kept_in_its_place(site, environ):
    install(site, "one")
    old = installed(environ)
    install(site, "two")
    remember(old, environ)
    assert [entry.name for entry in installed(environ)] == ["one", "two"]


@pytest.mark.parametrize(
    "damaged", [b"", b"\xff{", b"[]", b"{}", b'{"version": 2}', b'{"version": 2, "path": 1, "entries": 2}', b"null"]
)
def test_a_damaged_cache_is_no_cache(site, environ, damaged):
    install(site, "one")
    before = installed(environ)
    (file,) = (
        os.path.join(environ["XDG_CACHE_HOME"], "hal", name)
        for name in os.listdir(os.path.join(environ["XDG_CACHE_HOME"], "hal"))
    )
    with open(file, "wb") as cache:
        cache.write(damaged)
    assert installed(environ) == before


def test_without_a_cache_folder_the_plugins_are_found_all_the_same(site, tmp_path):
    install(site, "one")
    (tmp_path / "file").touch()
    environ = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    assert [entry.name for entry in installed(environ)] == ["one"]
    remember(installed(environ), environ)
