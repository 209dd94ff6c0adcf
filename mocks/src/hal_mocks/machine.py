"""A mock machine: its graph, its state folder, its clock and its faults. All faces start here."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

import msgspec

from hal.errors import DeviceNotFound, ProfileError, UsageError
from hal.model.kind import Kind
from hal_mocks.clock import Clock, RealClock, SharedClock
from hal_mocks.fault_rules import plan_fault
from hal_mocks.faults import Fault, FaultType
from hal_mocks.graph import Graph
from hal_mocks.state import State, usable

if TYPE_CHECKING:
    from hal_mocks.names import Named, Names

CLOCK_WORD = 2
_OPTIONS = ("state", "seed", "clock")
_CLOCKS = ("real", "virtual")


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
        self._names: Names | None = None
        self._key = ""

    def resolve(self, name: str) -> str:
        """Return the id of a device by id, short name or alias; in a rack by ``host/name`` where hosts share it.

        The ids of MIG partitions, which come and go, pass as they are. Raises ``DeviceNotFound``, or ``UsageError``
        if several devices have the name.
        """
        return self.named(name).id

    def named(self, name: str) -> Named:
        """Return all names of a device by one of them, as :meth:`resolve`."""
        from hal_mocks.names import Named, Names

        if self._names is None:
            self._names = Names(self.graph)
        found = self._names.find(name)
        if len(found) == 1:
            return found[0]
        if found:
            several = ", ".join(f"{device.node}/{device.name}" for device in found[:4])
            raise UsageError(f"{name!r} is the name of {len(found)} devices", hint=f"{several}, ...")
        if name.startswith("MIG-"):
            return Named(name, name, "", Kind.GPU)
        import difflib

        near = difflib.get_close_matches(name, self._names.by_name, n=1)
        raise DeviceNotFound(
            "no such device on this mock machine", device=name, hint=f"{near[0]}?" if near else "hal-probe list"
        )

    def graph_key(self) -> str:
        """Return a hash of the graph: what is rendered from it holds as long as this is the same."""
        if not self._key:
            from hal_mocks.graph_cache import graph_key

            self._key = graph_key(self.graph)
        return self._key

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
        """Let something go wrong; returns the fault, whose id heals it. ``details`` are fields of :class:`Fault`.

        The device may be given by any of its names. Raises ``UsageError`` for a fault that cannot happen to it.
        """
        planned = plan_fault(self.named(device_id), type, after_seconds, duration_seconds, details)
        (fault,) = self.schedule((planned,))
        return fault

    def schedule(self, faults: Iterable[Fault]) -> tuple[Fault, ...]:
        """Set many faults at once; their ``onset_at`` counts from now. Returns them as set."""
        now = self.clock.now()
        fresh: list[Fault] = []
        with self.state.locked():
            before = self.state.faults()
            for fault in faults:
                fault_id = self._next_fault_id((*before, *fresh))
                fresh.append(msgspec.structs.replace(fault, id=fault_id, onset_at=now + fault.onset_at))
            self.state.set_faults((*before, *fresh))
        self._sync()
        return tuple(fresh)

    def forget(self) -> None:
        """Forget everything that was remembered: faults and device state. Fault ids are not given again.

        Trees stay, and become those of a sound machine: a namespace may have them mounted.
        """
        with self.state.locked():
            self.state.set_faults(())
            self.state.clear()
        if (self.state.folder / "nvml").is_dir():
            from hal_mocks.nvml.staging import start_afresh

            start_afresh(self)
        self._sync()

    def changed(self) -> None:
        """Say that a device has become something else than before: handles look again, trees follow."""
        self.state.touch()
        self._sync()

    def _sync(self) -> None:
        from hal_mocks.sysfs import sync

        sync(self)
        self.show()

    def show(self) -> None:
        """Let the fake vendor libraries that are in use see what has changed; a machine that has none gets none."""
        if (self.state.folder / "nvml").is_dir():
            from hal_mocks.nvml.staging import sync

            sync(self)
        if (self.state.folder / "upmem-sim").is_dir():
            from hal_mocks.upmem_sim.staging import sync as sync_ranks

            sync_ranks(self)

    def _next_fault_id(self, faults: tuple[Fault, ...]) -> int:
        # Never used twice, not even after healing: who has acted upon a fault knows it by its id.
        control = self.state.control
        control[1] = 1 + max(control[1], *(fault.id for fault in faults), 0)
        return control[1]

    def heal(self, device_id: str | None = None, type: FaultType | None = None, id: int | None = None) -> int:
        """Take faults away (all that fit); returns how many. The device may be given by any of its names."""
        if device_id is not None:
            device_id = self.resolve(device_id)
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
        self._sync()
        return len(faults) - len(left)


class Options(msgspec.Struct, frozen=True):
    """What ``HAL_MACHINE`` says."""

    profile: str
    folder: Path
    seed: int
    clock: str


def machine_options(environ: Mapping[str, str]) -> Options | None:
    """Return what ``HAL_MACHINE`` says, or None if it is not set. Raises ``ProfileError`` if it makes no sense."""
    text = environ.get("HAL_MACHINE", "")
    if not text:
        return None
    name, _, query = text.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for option in options:
        if option not in _OPTIONS:
            raise ProfileError(
                f"HAL_MACHINE={text}: unknown option {option!r}", hint=f"the options are {', '.join(_OPTIONS)}"
            )
    seed, clock = options.get("seed") or "0", options.get("clock") or "real"
    if not seed.removeprefix("-").isdecimal() or len(seed) > 18:
        raise ProfileError(f"HAL_MACHINE={text}: seed {seed!r} is no whole number", hint="seed=1")
    if clock not in _CLOCKS:
        raise ProfileError(f"HAL_MACHINE={text}: unknown clock {clock!r}", hint="clock=real or clock=virtual")
    folder = Path(options["state"]) if options.get("state") else default_folder(name, environ)
    return Options(name, folder, int(seed), clock)


def open_machine(environ: Mapping[str, str] | None = None, clock: Clock | None = None) -> Machine | None:
    """Return the machine that ``HAL_MACHINE`` names, or None if it is not set.

    The form is ``PROFILE[?state=FOLDER&seed=N&clock=virtual]``; a profile is a name of ours or the path of a TOML
    file. Without ``state`` all processes of the same user and profile share one folder under the runtime directory.
    With ``clock=virtual`` time stands still in all of them until ``hal-mock advance`` moves it.
    """
    options = machine_options(os.environ if environ is None else environ)
    if options is None:
        return None
    from hal_mocks.graph_cache import load_graph

    with usable(options.folder):
        graph, key = load_graph(options.folder, options.profile, options.seed)
        machine = Machine(graph, options.folder, clock)
    machine._key = key
    if clock is None and options.clock == "virtual":
        machine.clock = SharedClock(machine.state.control, CLOCK_WORD, machine.state.locked)
    return machine


def default_folder(name: str, environ: Mapping[str, str]) -> Path:
    """Return where a machine keeps its state if nobody says otherwise: private to the user, gone after a reboot."""
    base = environ.get("XDG_RUNTIME_DIR")
    root = Path(base) if base and os.access(base, os.W_OK) else Path(tempfile.gettempdir(), f"hal-{os.getuid()}")
    return root / "hal-mocks" / name.replace("/", "_")


def device_not_found(device_id: str) -> DeviceNotFound:
    """Return the error for a name that the machine does not have."""
    return DeviceNotFound("no such device on this mock machine", device=device_id, hint="hal-probe list")
