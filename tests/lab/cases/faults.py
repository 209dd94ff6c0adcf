"""Faults that a real kernel reports: each must reach ``hal-probe watch``, and the conditions of a probe after."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from tests.lab import hardware
from tests.lab.guest import GuestError, Running
from tests.lab.lab import FAULTY_LINK, Lab, value

_SEEN_SECONDS = 90.0
_BAD_SECTOR, _BAD_SECTORS = 8, 8  # one page, which is what the kernel refuses as a whole
_BLOCK, _NAMESPACE = "pmem1", "namespace1.0"


class Watch:
    """A ``hal-probe watch`` in the guest, and the events that it prints."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._running: Running | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._running is not None:
            self._running.stop()

    def begin(self) -> str:
        """hal-probe watch begins"""
        self._running = self._lab.guest.start("hal-probe", "watch", "--json", "--timeout", "60", timeout=400)
        return self.wait("the machine", lambda event: event["type"] == "watching")

    def wait(self, what: str, wanted: Callable[[dict[str, Any]], bool]) -> str:
        """Wait for an event; returns its detail."""
        if self._running is None:
            raise AssertionError("hal-probe watch does not run")
        found: list[dict[str, Any]] = []

        def fits(line: str) -> bool:
            event = json.loads(line)
            if wanted(event):
                found.append(event)
            return bool(found)

        try:
            self._running.wait_line(fits, _SEEN_SECONDS)
        except GuestError as error:
            raise AssertionError(f"hal-probe watch did not see {what}: {error}") from error
        return str(found[0]["detail"])


def link_down(lab: Lab, watch: Watch) -> str:
    """a link goes down: watch says so"""
    lab.guest.run("ip", "link", "set", FAULTY_LINK, "down")
    return watch.wait("the link going down", _condition("rxe1", "LinkDown"))


def bad_blocks(lab: Lab, watch: Watch) -> str:
    """a bad block on a persistent region: reading it fails, watch says so"""
    lab.guest.write(f"/sys/block/{_BLOCK}/badblocks", f"{_BAD_SECTOR} {_BAD_SECTORS}")
    read = lab.guest.run(
        "dd", f"if=/dev/{_BLOCK}", "of=/dev/null", "bs=4096", f"skip={_BAD_SECTOR // 8}", "count=1", "iflag=direct",
        check=False,
    )  # fmt: skip
    assert read.code != 0, "the bad block could be read"
    assert "Input/output error" in read.err, read.err
    return watch.wait("the bad block", _condition("region1", "BadBlocks"))


def aer(lab: Lab, watch: Watch) -> str:
    """a completion time-out on a root port (AER): watch says so"""
    lab.machine.qmp.monitor(f"pcie_aer_inject_error {hardware.FAR_PORT} COMP_TIME")
    return watch.wait("the AER error", _condition(_far_port(lab), "PciError"))


def unplug(lab: Lab, watch: Watch) -> str:
    """an NVMe is unplugged: watch says so"""
    lab.machine.qmp.execute("device_del", {"id": "hot"})
    lab.machine.qmp.wait_event("DEVICE_DELETED", device="hot")
    return watch.wait("the NVMe going", _about("nvme-" + hardware.HOT_NVME, "removed"))


def health(lab: Lab) -> str:
    """a probe after all that has the condition for each, with evidence, and the NVMe is gone"""
    report = lab.probe()
    named = {device["name"]: device for device in report["devices"]}
    assert _conditions(named["rxe1"]).get("LinkDown") == "the port is down", named["rxe1"]
    assert not _conditions(named["rxe0"]), named["rxe0"]
    region = named["region1"]
    assert _conditions(region).get("BadBlocks") == f"{_BAD_SECTORS} bad blocks of 512 bytes", region
    assert region["health"] == "degraded"
    port = named[_far_port(lab)]
    assert set(_conditions(port)) == {"PciError"}, port
    assert value(port, "pci_nonfatal_errors") == 1
    assert not [device for device in report["devices"] if value(device, "serial") == hardware.HOT_NVME]
    assert report["exit_code"] == 1
    sick = {name: list(_conditions(device)) for name, device in named.items() if _conditions(device)}
    return ", ".join(f"{name} {'+'.join(types)}" for name, types in sick.items())


def link_up(lab: Lab, watch: Watch) -> str:
    """the link comes up again: watch says so"""
    lab.guest.run("ip", "link", "set", FAULTY_LINK, "up")
    return watch.wait("the link coming up", _about("rxe1", "condition", health="healthy"))


def mend(lab: Lab, watch: Watch) -> str:
    """the namespace is bound anew, without its bad block: watch says so"""
    # Writing would mend it where firmware can clear poison, which QEMU's cannot: the list is made anew by binding.
    lab.guest.shell(f"ndctl disable-namespace {_NAMESPACE} && ndctl enable-namespace {_NAMESPACE}")
    return watch.wait("the bad block mended", _about("region1", "condition", health="healthy"))


def plug(lab: Lab, watch: Watch) -> str:
    """the NVMe is plugged in again: watch says so"""
    lab.machine.qmp.execute("device_add", hardware.hot_nvme())
    return watch.wait("the NVMe coming", _about("nvme-" + hardware.HOT_NVME, "added"))


def _far_port(lab: Lab) -> str:
    far = next(device for device in lab.devices("nvme").values() if value(device, "serial") == hardware.FAR_NVME)
    return str(far["location"]["pci_path"][-1])


def _about(device: str, type: str, health: str | None = None) -> Callable[[dict[str, Any]], bool]:
    def fits(event: dict[str, Any]) -> bool:
        return (
            device in (event.get("device"), event.get("name"))
            and event["type"] == type
            and health in (None, event.get("health"))
        )

    return fits


def _condition(name: str, type: str) -> Callable[[dict[str, Any]], bool]:
    return lambda event: event.get("name") == name and event["type"] == "condition" and type in event["detail"]


def _conditions(device: dict[str, Any]) -> dict[str, str]:
    return {condition["type"]: condition["evidence"] for condition in device.get("conditions", ())}


BREAKING = (link_down, bad_blocks, aer, unplug)
MENDING = (link_up, mend, plug)
