"""A mock machine: its graph, its state folder, its clock and its faults. All faces start here."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl

import msgspec

from hal.errors import DeviceNotFound, ProfileError
from hal_mocks.clock import Clock, RealClock
from hal_mocks.faults import Fault, FaultType
from hal_mocks.graph import Graph
from hal_mocks.state import State


class Machine:
    """One mock machine, shared by all processes that name the same state folder.

    ``faults_of`` is what the drivers ask before every step; it is two loads when nothing has changed.
    """

    def __init__(self, graph: Graph, folder: Path, clock: Clock | None = None) -> None:
        self.graph = graph
        self.state = State(folder)
        self.clock: Clock = clock or RealClock()
        self._generation = -1
        self._until = 0.0
        self._active: dict[str, tuple[Fault, ...]] = {}
        self._scheduled = False

    def faults_of(self, device_id: str) -> tuple[Fault, ...]:
        """Return the faults that hold on a device now."""
        if self.state.control[0] != self._generation or (self._scheduled and self.clock.now() >= self._until):
            self._reload()
        return self._active.get(device_id, ())

    def _reload(self) -> None:
        generation = self.state.control[0]
        now = self.clock.now()
        active: dict[str, tuple[Fault, ...]] = {}
        changes: list[float] = []
        for fault in self.state.faults():
            if fault.active(now):
                active[fault.device] = (*active.get(fault.device, ()), fault)
            change = fault.next_change(now)
            if change is not None:
                changes.append(change)
        self._active = active
        self._scheduled = bool(changes)
        self._until = min(changes, default=0.0)
        self._generation = generation

    def inject(
        self,
        device_id: str,
        type: FaultType,
        *,
        after_seconds: float = 0.0,
        duration_seconds: float | None = None,
        **details: object,
    ) -> Fault:
        """Let something go wrong; returns the fault, whose id heals it. ``details`` are fields of :class:`Fault`."""
        with self.state.locked():
            faults = self.state.faults()
            fault = msgspec.convert(
                {
                    "id": self._next_fault_id(faults),
                    "device": device_id,
                    "type": type,
                    "onset_at": self.clock.now() + after_seconds,
                    "duration_seconds": duration_seconds,
                    **details,
                },
                Fault,
            )
            self.state.set_faults((*faults, fault))
        return fault

    def _next_fault_id(self, faults: tuple[Fault, ...]) -> int:
        # Never used twice, not even after healing: who has acted upon a fault knows it by its id.
        control = self.state.control
        control[1] = 1 + max(control[1], *(fault.id for fault in faults), 0)
        return control[1]

    def heal(self, device_id: str | None = None, type: FaultType | None = None, id: int | None = None) -> int:
        """Take faults away (all that fit); returns how many."""
        with self.state.locked():
            faults = self.state.faults()
            left = tuple(
                fault
                for fault in faults
                if (device_id is not None and fault.device != device_id)
                or (type is not None and fault.type is not type)
                or (id is not None and fault.id != id)
            )
            self.state.set_faults(left)
        return len(faults) - len(left)


def open_machine(environ: Mapping[str, str] | None = None, clock: Clock | None = None) -> Machine | None:
    """Return the machine that ``HAL_MACHINE`` names, or None if it is not set.

    The form is ``PROFILE[?state=FOLDER&seed=N]``; a profile is a name of ours or the path of a TOML file. Without
    ``state`` all processes of the same user and profile share one folder under the runtime directory.
    """
    environ = os.environ if environ is None else environ
    text = environ.get("HAL_MACHINE", "")
    if not text:
        return None
    name, _, query = text.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = set(options) - {"state", "seed"}
    if unknown:
        raise ProfileError(
            f"HAL_MACHINE={text}: unknown option {sorted(unknown)[0]!r}", hint="the options are state and seed"
        )
    from hal_mocks.profile import load_profile

    graph = load_profile(name, seed=int(options.get("seed", "0") or 0))
    folder = Path(options["state"]) if options.get("state") else default_folder(name, environ)
    return Machine(graph, folder, clock)


def default_folder(name: str, environ: Mapping[str, str]) -> Path:
    """Return where a machine keeps its state if nobody says otherwise: private to the user, gone after a reboot."""
    base = environ.get("XDG_RUNTIME_DIR")
    root = Path(base) if base and os.access(base, os.W_OK) else Path(tempfile.gettempdir(), f"hal-{os.getuid()}")
    return root / "hal-mocks" / name.replace("/", "_")


def device_not_found(device_id: str) -> DeviceNotFound:
    """Return the error for a name that the machine does not have."""
    return DeviceNotFound("no such device on this mock machine", device=device_id, hint="hal-probe list")
