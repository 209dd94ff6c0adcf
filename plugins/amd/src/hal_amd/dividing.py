"""Dividing a GPU: the mode of all its computing at once (``SPX``, ``DPX``, ``QPX``, ``CPX``), set as root.

It does not fit the verbs of ``PartitionsDevices``, which make and end partitions one by one: so it has names of its
own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hal.drivers.contract import Discovery
from hal.errors import InvalidArgument, Unsupported
from hal.interfaces.deadline import Deadline, or_default
from hal.interfaces.operation import Operation
from hal_amd.writing import write

if TYPE_CHECKING:
    from hal_amd.driver import Seen
    from hal_amd.lookout import Lookout

OPERATION_SECONDS = 60.0


class DividingDriver(ABC):
    """Divides GPUs into equal parts, and makes them whole."""

    lookout: Lookout

    @abstractmethod
    def discover(self, deadline: Deadline) -> Discovery:
        """Find the devices."""

    @abstractmethod
    def _usable(self, device_id: str, step: str, deadline: Deadline, *, lease: bool = True) -> Seen:
        """Return a device that answers, and if it is to be leased, can be."""

    @abstractmethod
    def _refuse_leftovers(self, seen: Seen, step: str, deadline: Deadline, *, patient: bool = True) -> None:
        """Raise ``DeviceBusy`` while a process uses a device."""

    def compute_partitions(self, device_id: str, *, deadline: Deadline | None = None) -> Sequence[str]:
        """Return the modes that a GPU can be in. ``Unsupported`` for one that cannot be divided, or is a part."""
        return self._modes(device_id, "compute_partitions", or_default(deadline))[1]

    def set_compute_partition(
        self, device_id: str, mode: str, *, deadline: Deadline | None = None
    ) -> Operation[tuple[str, ...]]:
        """Divide a GPU, and return the ids of what can be leased then: its parts, or the GPU itself.

        ``DeviceBusy`` while a process uses it, ``InvalidArgument`` for a mode that it does not have. The caller has
        ended every lease on the GPU and its parts.
        """
        step = "set_compute_partition"
        limit = or_default(deadline, OPERATION_SECONDS)
        seen, modes = self._modes(device_id, step, limit)
        if mode not in modes:
            raise InvalidArgument(f"no mode {mode!r}", device=device_id, during=step, hint=", ".join(modes))

        def work(_: Operation[tuple[str, ...]]) -> tuple[str, ...]:
            self._refuse_leftovers(seen, step, limit, patient=False)
            path = f"{seen.card.path}/current_compute_partition"
            self.lookout.ask(
                seen.host,
                seen.card,
                device_id,
                step,
                lambda machine: write(machine.sys, path, mode, device_id, step),
                limit,
            )
            found = self.discover(limit).devices
            return tuple(one.id for one in found if one.allocatable and device_id in (one.id, one.parent))

        return Operation.spawn(device_id, step, work)

    def _modes(self, device_id: str, step: str, deadline: Deadline) -> tuple[Seen, tuple[str, ...]]:
        seen = self._usable(device_id, step, deadline, lease=False)
        modes = seen.device.value("compute_partitions")
        if seen.node is not None or not isinstance(modes, tuple):
            raise Unsupported(
                "it cannot be divided", device=device_id, during=step, hint="Instinct MI300 and later, as whole GPUs"
            )
        return seen, tuple(str(mode) for mode in modes)
