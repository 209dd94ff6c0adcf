"""The driver: discovery, health, fences and handles of AMD GPUs, over sysfs alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from hal.drivers.contract import READY, Cause, Discovery, Grant, HostRoot, Problem, Readiness
from hal.drivers.fences import Fences, fence_folder
from hal.errors import DeviceGone, DeviceNotFound, DriverError, Unsupported
from hal.host.scan import Scan
from hal.host.tree import HostTree
from hal.interfaces.deadline import Deadline
from hal.interfaces.gpu import GpuProcess, Peer
from hal.model.device import Device
from hal.model.health import Condition, Presence
from hal_amd import describe, health, kfd, smi, wiring
from hal_amd.cards import NAME, Card, driven, find_cards, undriven
from hal_amd.dividing import DividingDriver
from hal_amd.kfd import Node
from hal_amd.lookout import Look, Lookout, look_at
from hal_amd.tenancy import refuse_leftovers

if TYPE_CHECKING:
    from hal.drivers.guard import Guard
    from hal_amd.handle import AmdGpu

ROOT = "HAL_AMD_ROOT"
"""The variable that names a tree which stands for the running machine: a stand-in's, whose GPUs may be leased."""


class Seen(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A device as it was last found; ``node`` is a partition's own, None for a whole GPU."""

    device: Device
    host: HostRoot
    card: Card
    node: Node | None = None

    @property
    def parts(self) -> dict[int, str | None]:
        """The GPU ids by which KFD knows this device, each with the partition's id."""
        if self.node is not None:
            return {self.node.gpu_id: self.device.id}
        return {node.gpu_id: self.card.part_id(node) if self.card.divided else None for node in self.card.nodes}


class AmdDriver(DividingDriver):
    """Drives the GPUs that amdgpu is bound to, and their partitions. Creating one touches nothing."""

    name = NAME

    def __init__(self, hosts: Sequence[HostRoot], environ: Mapping[str, str], look: Look = look_at) -> None:
        self._hosts = tuple(hosts)
        self.environ = environ
        self.lookout = Lookout(look)
        self._fences = Fences(fence_folder(environ))
        self._memory = health.Memory()
        self._seen: dict[str, Seen] = {}
        self._present: frozenset[str] = frozenset()
        self._library: Any = None
        self._library_asked = False

    def _is_live(self, host: HostRoot) -> bool:
        return host.root is None or host.root == self.environ.get(ROOT)

    def readiness(self) -> Readiness:
        """Say whether amdgpu drives a GPU here, or what is missing."""
        idle: str | None = None
        for host in self._hosts:
            try:
                with HostTree(host.root) as machine:
                    if driven(machine.sys):
                        return READY
                    idle = idle or undriven(machine.sys)
            except DriverError as error:
                return Readiness(cause=Cause.BROKEN, detail=error.message, remedy=error.hint or "")
        if idle is not None:
            return Readiness(
                cause=Cause.NO_DRIVER,
                detail=f"the kernel driver amdgpu is not bound to the GPU at {idle}",
                remedy="modprobe amdgpu",
            )
        return Readiness(
            cause=Cause.NO_HARDWARE, detail="no GPU of AMD's on PCI (vendor 1002)", remedy="lspci -d 1002:"
        )

    # what there is

    def discover(self, deadline: Deadline) -> Discovery:
        """Find the GPUs, each followed by its partitions. A lost one is a ghost with its conditions."""
        seen: dict[str, Seen] = {}
        problems: list[Problem] = []
        for host in self._hosts:
            try:
                with HostTree(host.root) as machine:
                    found = self._discover(host, machine, deadline)
            except DriverError as error:
                problems.append(Problem(source=host.node, step="discover", detail=error.message, hint=error.hint or ""))
                continue
            seen |= {one.device.id: one for one in found}
        self._seen = {**self._seen, **seen}
        self._present = frozenset(seen)
        return Discovery(devices=tuple(one.device for one in seen.values()), problems=tuple(problems))

    def _discover(self, host: HostRoot, machine: HostTree, deadline: Deadline) -> list[Seen]:
        scan = Scan(machine, host.node, host.rack, deadline=deadline)
        cards = find_cards(machine.sys, scan, host)
        if not cards:
            return []
        readings = self.lookout.look(host, cards, deadline)
        names = self._names() if machine.live else {}
        home = wiring.homes(cards)
        live = self._is_live(host)
        now = time.time()
        found: list[Seen] = []
        for card in cards:
            reading = readings[card.id]
            conditions = self._judge(card, reading, now)
            facts = describe.identify(machine.sys, scan, card, names)
            links = wiring.links(card, home)
            gpu = describe.gpu_device(card, scan, facts, reading, links, tuple(conditions), live=live)
            found.append(Seen(device=gpu, host=host, card=card))
            if card.divided:
                found.extend(
                    Seen(device=describe.part_device(gpu, card, node, live=live), host=host, card=card, node=node)
                    for node in card.nodes
                )
        return found

    def _names(self) -> dict[str, str]:
        """Return what AMD's library calls the GPUs of the running machine; it is looked for once."""
        if not self._library_asked:
            self._library_asked = True
            self._library = smi.load()
        return {} if self._library is None else smi.names(self._library)

    def _judge(self, card: Card, reading: Any, now: float) -> list[Condition]:
        if reading is None:
            return health.unanswered(card, self._memory, now)
        return health.judge(card, reading, self._memory, now)

    # how it is

    def sample(self, device_ids: Sequence[str], deadline: Deadline) -> Sequence[Condition]:
        """Return the conditions that hold now. Every GPU is asked in a thread of its own."""
        wanted = [self._find(device_id, "sample", deadline) for device_id in device_ids]
        now = time.time()
        found: list[Condition] = []
        for host in {one.host.node: one.host for one in wanted}.values():
            here = [one for one in wanted if one.host.node == host.node]
            cards = list({one.card.id: one.card for one in here}.values())
            readings = self.lookout.look(host, cards, deadline)
            judged = {card.id: self._judge(card, readings[card.id], now) for card in cards}
            for one in here:
                if one.node is not None and one.device.id not in self._present:  # its GPU was divided otherwise
                    found.append(health.gone(one.device.id, now))
                    continue
                found.extend(
                    msgspec.structs.replace(condition, device=one.device.id) for condition in judged[one.card.id]
                )
        return found

    def processes(self, seen: Seen, machine: HostTree) -> list[GpuProcess]:
        """Return who uses a device."""
        return kfd.processes(machine.sys, machine.proc, seen.parts)

    def peers(self, seen: Seen) -> list[Peer]:
        """Return the other GPUs of the same machine."""
        others = [(one.card, one.device) for one in self._seen.values() if one.node is None]
        return wiring.peers(seen.card, seen.device, others)

    # whose it is

    def prepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Refuse what cannot be leased, a lost GPU and a lower fence."""
        self._usable(device_id, "prepare", deadline)
        self._fences.raise_to(device_id, grant, "prepare")

    def unprepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Remember the fence, and see that no process of the holder uses the GPU any more. A lost one is let go."""
        seen = self._find(device_id, "unprepare", deadline)
        self._fences.raise_to(device_id, grant, "unprepare")
        if not self._is_live(seen.host) or self._is_lost(seen, "unprepare", deadline):
            return
        self._refuse_leftovers(seen, "unprepare", deadline)

    def open(self, device_id: str, guard: Guard, deadline: Deadline) -> AmdGpu:
        """Open a GPU or partition in this process: for looking after it, and for the environment of others."""
        from hal_amd.handle import AmdGpu

        guard.check()
        self.discover(deadline)
        seen = self._usable(device_id, "open", deadline)
        return AmdGpu(self, seen, guard)

    def close(self) -> None:
        """Nothing is held."""

    def _refuse_leftovers(self, seen: Seen, step: str, deadline: Deadline, *, patient: bool = True) -> None:
        def users() -> list[GpuProcess]:
            return self.lookout.ask(
                seen.host, seen.card, seen.device.id, step, lambda machine: self.processes(seen, machine), deadline
            )

        refuse_leftovers(seen.device.id, step, users, deadline, patient)

    def _is_lost(self, seen: Seen, step: str, deadline: Deadline) -> bool:
        return self.lookout.ask(
            seen.host,
            seen.card,
            seen.device.id,
            step,
            lambda machine: look_at(machine, seen.card).lost,
            deadline,
        )

    def _usable(self, device_id: str, step: str, deadline: Deadline, *, lease: bool = True) -> Seen:
        seen = self._find(device_id, step, deadline)
        if not self._is_live(seen.host):
            raise Unsupported(
                f"{seen.host.root} tells of a machine that this is not",
                device=device_id,
                during=step,
                hint=f"lease GPUs of the running machine; {ROOT} names a tree that stands for it",
            )
        if seen.device.presence is not Presence.PRESENT or self._is_lost(seen, step, deadline):
            raise DeviceGone("the GPU does not answer any more", device=device_id, during=step, hint="reboot the node")
        if lease and not seen.device.allocatable:
            divided = seen.node is None and seen.card.divided
            raise Unsupported(
                "the GPU is divided; it is leased in partitions" if divided else "ROCm does not see it (no KFD node)",
                device=device_id,
                during=step,
                hint=f"claim {device_id}/part-…" if divided else "load amdgpu with KFD; look at dmesg for kfd",
            )
        return seen

    def _find(self, device_id: str, step: str, deadline: Deadline) -> Seen:
        if device_id not in self._seen:
            self.discover(deadline)
        seen = self._seen.get(device_id)
        if seen is None:
            raise DeviceNotFound(
                "no GPU of AMD's has this id", device=device_id, during=step, hint="hal-probe list --kind gpu"
            )
        return seen
