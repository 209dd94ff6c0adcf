"""What the checks share: the machine that is on, the inventory it showed last, the folder for what is kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab import hardware
from tests.lab.guest import Ended, Guest, Running
from tests.lab.machine import Machine
from tests.lab.needs import Host

_PROBE_SECONDS = 60  # emulated: a probe that takes 30 ms on a machine takes some seconds here
_LINK_NET = "10.99.0.1/24"
_FAR_NET = "10.99.1.1/24"
NEAR_LINK, FAULTY_LINK = "lab0", "eth0"
"""The dummy interface under ``rxe0``, for programs; and the virtio NIC under ``rxe1``, whose link goes down."""


@dataclass
class Lab:
    """One boot. ``seen`` is what its first probe showed; ``beside`` runs while other checks do."""

    host: Host
    folder: Path
    machine: Machine
    seen: dict[str, Any] = field(default_factory=dict)
    beside: Running | None = None

    @property
    def guest(self) -> Guest:
        """The agent of the boot that is on."""
        return self.machine.guest

    def prepare(self) -> None:
        """drivers, links and soft-RoCE come up"""
        self._load(hardware.MODULES)
        self.guest.shell(
            f"""
            ip link set lo up
            ip link add {NEAR_LINK} type dummy
            ip address add {_LINK_NET} dev {NEAR_LINK}
            ip address add {_FAR_NET} dev {FAULTY_LINK}
            ip link set {NEAR_LINK} up
            ip link set {FAULTY_LINK} up
            rdma link add rxe0 type rxe netdev {NEAR_LINK}
            rdma link add rxe1 type rxe netdev {FAULTY_LINK}
            """,
            timeout=60,
        )

    def prepare_memory(self) -> None:
        """the drivers of persistent memory come up"""
        self._load(hardware.MEMORY_MODULES)

    def _load(self, modules: Iterable[str]) -> None:
        packages = next(path for path in self.host.python.parent.parent.glob("lib/python3*/site-packages"))
        # Only in the guest: its root is an overlay, the host's environment stays as it is.
        self.guest.write(f"{packages}/debian.pth", f"{self.host.debian_python}\n")
        self.guest.write("/proc/sys/kernel/hostname", "lab")
        self.guest.run("modprobe", "-a", *modules, timeout=60)

    def probe(self, *arguments: str) -> dict[str, Any]:
        """Return what ``hal-probe`` says in the guest, as its JSON."""
        ended = self.hal_probe("list", "--json", *arguments)
        if ended.code not in (0, 1, 3):
            raise AssertionError(f"hal-probe ended with {ended.code}: {ended.err[-2000:]}")
        report: dict[str, Any] = ended.json
        return report

    def hal_probe(self, *arguments: str) -> Ended:
        """Run ``hal-probe`` with time enough for an emulated processor."""
        return self.guest.run(
            "hal-probe", "--timeout", str(_PROBE_SECONDS), *arguments, timeout=2 * _PROBE_SECONDS, check=False
        )

    def devices(self, kind: str) -> dict[str, dict[str, Any]]:
        """Return the devices of a kind that the first probe showed, by name."""
        return {device["name"]: device for device in self.seen["devices"] if device["kind"] == kind}


def value(device: dict[str, Any], attribute: str) -> Any:
    """Return the value of an attribute of a device record, None if it is absent."""
    return device["attributes"].get(attribute, {}).get("value")
