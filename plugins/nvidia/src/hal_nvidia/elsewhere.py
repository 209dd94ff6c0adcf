"""What stands in the driver's place where there is only a tree to look at: it says so, and imports nothing for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from hal.drivers.contract import Cause, Discovery, Grant, Readiness
from hal.errors import Unsupported

if TYPE_CHECKING:
    from hal.drivers.guard import Guard
    from hal.interfaces.deadline import Deadline
    from hal.model.health import Condition

ONLY_HERE = "NVML answers for the running machine, not for a tree"
REMEDY = "use this plugin on the machine itself"


class Elsewhere:
    """A driver that is never ready; every other verb refuses."""

    name = "nvidia"

    def readiness(self) -> Readiness:
        """Say why not."""
        return Readiness(cause=Cause.NO_HARDWARE, detail=ONLY_HERE, remedy=REMEDY)

    def discover(self, deadline: Deadline) -> Discovery:
        """Refuse."""
        self._refuse(None, "discover")

    def sample(self, device_ids: Sequence[str], deadline: Deadline) -> Sequence[Condition]:
        """Refuse."""
        self._refuse(next(iter(device_ids), None), "sample")

    def prepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Refuse."""
        self._refuse(device_id, "prepare")

    def unprepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Refuse."""
        self._refuse(device_id, "unprepare")

    def open(self, device_id: str, guard: Guard, deadline: Deadline) -> NoReturn:
        """Refuse."""
        self._refuse(device_id, "open")

    def close(self) -> None:
        """Nothing is held."""

    def _refuse(self, device_id: str | None, step: str) -> NoReturn:
        raise Unsupported(ONLY_HERE, device=device_id, during=step, hint=REMEDY)
