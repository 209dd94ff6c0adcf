"""Resetting a GPU by ``amdgpu_gpu_recover`` of debugfs.

Reading ``amdgpu_gpu_recover`` resets the GPU and gives the result. Root alone may, and debugfs must be mounted: where
it cannot be looked into the driver does not offer a reset. GPUs of one XGMI hive are reset together. A reset of the PCI
function (``reset``) is not used: amdgpu is not told of one, and loses what it has set up.
"""

from __future__ import annotations

import os
import time

from hal.drivers.contract import Context
from hal.errors import DeviceGone, HardwareFault, Unsupported
from hal.host.tree import HostTree
from hal.interfaces.deadline import Deadline, or_default
from hal.interfaces.operation import Operation
from hal_amd.driver import ROOT, AmdDriver, Seen
from hal_amd.writing import refusal

DEBUGFS = "sys/kernel/debug/dri"
FILE = "amdgpu_gpu_recover"
RESET_SECONDS = 60.0
_LOOK_SECONDS = 0.1


def make_driver(context: Context) -> AmdDriver:
    """Return a driver for some machines; one that can also reset where this process may look into debugfs."""
    places = [host.root or "/" for host in context.hosts if host.root in (None, context.environ.get(ROOT))]
    able = any(os.access(os.path.join(place, DEBUGFS), os.R_OK | os.X_OK) for place in places)
    return (ResettingAmdDriver if able else AmdDriver)(context.hosts, context.environ)


class ResettingAmdDriver(AmdDriver):
    """The driver of root, where debugfs is mounted."""

    def reset(self, device_id: str, *, deadline: Deadline | None = None) -> Operation[None]:
        """Reset a GPU and wait until it answers again. ``DeviceBusy`` while a process uses it, or its hive."""
        limit = or_default(deadline, RESET_SECONDS)
        seen = self._find(device_id, "reset", limit)
        if seen.node is not None:
            whole = Unsupported(
                "a part of a GPU is reset with the whole",
                device=device_id,
                during="reset",
                hint=f"reset {seen.card.id}",
            )
            return Operation.failed(whole, device_id, "reset")

        def work(_: Operation[None]) -> None:
            for other in self._hive(seen):
                self._refuse_leftovers(other, "reset", limit, patient=False)
            self.lookout.ask(
                seen.host, seen.card, device_id, "reset", lambda machine: _recover(machine, seen, device_id), limit
            )
            self._wait_for(seen, limit)

        return Operation.spawn(device_id, "reset", work)

    def _hive(self, seen: Seen) -> list[Seen]:
        """Return the GPUs that are reset with this one, itself first."""
        hive = seen.device.value("xgmi_hive")
        others = (
            other
            for other in self._seen.values()
            if other.node is None and other.card is not seen.card and other.host.node == seen.host.node
        )
        return [seen, *(other for other in others if hive is not None and other.device.value("xgmi_hive") == hive)]

    def _wait_for(self, seen: Seen, deadline: Deadline) -> None:
        while self._is_lost(seen, "reset", deadline):
            if deadline.expired:
                raise DeviceGone(
                    "the GPU did not come back after its reset",
                    device=seen.device.id,
                    during="reset",
                    hint="look at dmesg; reboot the node",
                )
            time.sleep(_LOOK_SECONDS)


def _recover(machine: HostTree, seen: Seen, device_id: str) -> None:
    card = seen.card
    folder = os.path.join(machine.root, DEBUGFS, str(card.minor))
    try:
        with open(os.path.join(folder, "name"), encoding="ascii", errors="replace") as file:
            name = file.read()
        if f"dev={card.address}" not in name.split():  # never another GPU than the one that was meant
            raise Unsupported(
                f"debugfs has no entry for {card.address}", device=device_id, during="reset", hint="reboot the node"
            )
        with open(os.path.join(folder, FILE), encoding="ascii", errors="replace") as file:
            result = file.read().strip()
    except OSError as error:
        raise refusal(error, f"reading {FILE}", device_id, "reset") from error
    code = result.rsplit(maxsplit=1)[-1] if result else "0"
    if code.lstrip("-").isdecimal() and int(code) != 0:
        raise HardwareFault(
            f"the driver could not reset the GPU: {code}",
            device=device_id,
            during="reset",
            hint="look at dmesg; reboot the node",
            code=int(code),
        )
