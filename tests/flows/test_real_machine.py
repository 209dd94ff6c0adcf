"""The machine that runs the tests, as hal and as ``lspci`` and ``lstopo`` see it (Debian: pciutils, hwloc-nox)."""

import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET

import pytest

from hal.drivers.contract import HostRoot
from hal.host.driver import discover_host
from hal.host.redact import Pseudonyms
from hal.host.snapshot import record
from hal.model.device import Device
from hal.model.kind import Kind


@pytest.fixture(scope="module")
def devices() -> tuple[Device, ...]:
    found = discover_host(HostRoot(node="here"))
    assert not found.problems
    return found.devices


def output(*command: str) -> str | None:
    """Return what a program prints, or None if it is not installed."""
    if shutil.which(command[0]) is None:
        return None
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def functions_of(devices: tuple[Device, ...]) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for device in devices:
        for address in device.value("functions") or (device.location.pci_address,):
            if address is not None and device.value("pci_vendor") is not None:
                found[address] = tuple(device.value(f"pci_{name}") for name in ("vendor", "device", "class"))
    return found


def test_every_pci_function_that_the_kernel_lists_is_found(devices):
    listed = set(os.listdir("/sys/bus/pci/devices")) if os.path.isdir("/sys/bus/pci/devices") else set()
    assert set(functions_of(devices)) == listed


def test_pci_functions_are_those_of_lspci(devices):
    text = output("lspci", "-D", "-n")
    if text is None:
        text = "".join(_line_as_lspci(address) for address in os.listdir("/sys/bus/pci/devices"))
    told = {
        match[1]: (match[3], match[4], match[2])
        for match in re.finditer(r"^(\S+) (\w{4}): (\w{4}):(\w{4})", text, re.MULTILINE)
    }
    found = {address: (vendor, device, code[:4]) for address, (vendor, device, code) in functions_of(devices).items()}
    assert found == told


def _line_as_lspci(address: str) -> str:
    def read(name: str) -> str:
        with open(f"/sys/bus/pci/devices/{address}/{name}", encoding="ascii") as file:
            return file.read().strip().removeprefix("0x")

    return f"{address} {read('class')[:4]}: {read('vendor')}:{read('device')}\n"


def test_numa_nodes_have_the_cpus_and_the_memory_of_lstopo(devices):
    text = output("lstopo-no-graphics", "--of", "xml")
    cpus = sum(device.capacity["cpus"] for device in devices if device.kind is Kind.CPU)
    memory = sorted(
        device.capacity["memory_bytes"]
        for device in devices
        if device.kind is Kind.MEMORY and device.name.startswith("memory")
    )
    assert cpus == len(os.sched_getaffinity(0)) or cpus == os.cpu_count()
    if text is not None:
        nodes = [node for node in ET.fromstring(text).iter("object") if node.get("type") == "NUMANode"]
        assert memory == sorted(int(node.get("local_memory", "0")) for node in nodes)


def test_interfaces_with_hardware_are_those_of_the_kernel(devices):
    expected = {
        name
        for name in os.listdir("/sys/class/net")
        if "/virtual/" not in os.path.realpath(f"/sys/class/net/{name}")
        and os.path.exists(f"/sys/class/net/{name}/device")
    }
    found = {
        name.removeprefix("netdev:") for device in devices for name in device.aliases if name.startswith("netdev:")
    }
    assert found == expected


def test_a_snapshot_of_this_machine_replays_as_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    target = str(tmp_path / "here.tgz")
    hidden = Pseudonyms()
    record(HostRoot(node="here"), target, pseudonyms=hidden)
    original = discover_host(HostRoot(node="here")).devices
    again = discover_host(HostRoot(node="here", root=target)).devices
    assert [(device.kind, len(device.attributes)) for device in again] == [
        (device.kind, len(device.attributes)) for device in original
    ]
    for before, after in zip(original, again, strict=True):
        for name, attribute in before.attributes.items():
            other = after.attributes[name]
            assert (attribute.source, attribute.absent) == (other.source, other.absent), name
            if name != "rshim" and attribute.value != other.value:
                assert str(attribute.value) in hidden.seen, f"{before.name}.{name} changed without being a pseudonym"
