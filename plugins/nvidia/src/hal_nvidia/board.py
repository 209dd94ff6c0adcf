"""One GPU as NVML knows it in this process: its handle, its place, and what was learned about it."""

from __future__ import annotations

from typing import Any

from hal.drivers.guarded import Call
from hal.model.attributes import Attribute
from hal.model.health import Condition
from hal_nvidia import errors as e
from hal_nvidia.sampling import Sampler


class Board:
    """One GPU. ``address`` is its PCI address as sysfs writes it (``0000:17:00.0``)."""

    def __init__(self, uuid: str, address: str) -> None:
        self.uuid = uuid
        self.address = address
        self.index = 0
        self.generation = -1
        self.handle: Any = None
        self.nvml: Any = None
        self.identity: dict[str, Attribute] = {}
        self.placements: Attribute | None = None
        self.links: tuple[int, ...] = ()
        self.all_up: list[int] = []
        self.links_seen_up: set[int] = set()
        self.stuck: Call[Any] | None = None
        self.lost = False
        self.xids: dict[tuple[int, str], Condition] = {}
        self.first_seen: dict[tuple[str, int | None], float] = {}
        self._sampler: Sampler | None = None

    def adopt(self, nvml: Any, handle: Any, index: int, generation: int) -> None:
        """Take a handle that NVML gave."""
        self.nvml, self.handle, self.index, self.generation = nvml, handle, index, generation
        self._sampler = None

    def refetch(self, nvml: Any, generation: int) -> None:
        """Get the handle again if NVML was initialised anew since. Raises what NVML raises."""
        if self.generation != generation:
            self.adopt(nvml, nvml.nvmlDeviceGetHandleByUUID(self.uuid), self.index, generation)

    @property
    def sampler(self) -> Sampler:
        """The calls of a sample, bound to the handle."""
        if self._sampler is None:
            self._sampler = Sampler(self.nvml, self.handle, self.links)
        return self._sampler

    def rearm(self) -> None:
        """Ask again for what could not be answered before: modes, or the board itself, have changed."""
        self._sampler = None

    def since(self, type: str, code: int | None, now: float) -> float:
        """Return when a condition was first seen by this process."""
        return self.first_seen.setdefault((type, code), now)

    def forget(self) -> None:
        """Forget what a reset has mended."""
        self.xids.clear()
        self.first_seen.clear()
        self.lost = False
        self.rearm()


def pci_address(bus_id: str) -> str:
    """Return NVML's bus id (``00000000:17:00.0``) as sysfs writes it; a domain beyond four digits keeps its own."""
    domain, _, rest = bus_id.strip().lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"


def text(value: Any) -> str:
    """Return a text that the binding gave as bytes or as text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def process_name(nvml: Any, pid: int) -> str:
    """Return a process's name without its folder; empty where it may not be told."""
    try:
        return text(nvml.nvmlSystemGetProcessName(pid)).rsplit("/", 1)[-1]
    except Exception as error:  # a guard around the library: a name is not worth failing for
        if e.code_of(error) is None:
            raise
        return ""
