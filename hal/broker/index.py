"""Which devices there are, on which machines, and who has them: indexes that are brought up to date as records come."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from hal.broker.allocation.places import Node
from hal.broker.allocation.problem import Purse
from hal.broker.fair.tree import FairTree
from hal.broker.snapshot import Cordon
from hal.model.device import Device
from hal.model.lease import AllocatedDevice

NODE = "node:"
"""What the target of a cordon begins with that stands for a whole machine."""


class DeviceIndex(ABC):
    """The machines as :class:`~hal.broker.allocation.places.Node`, with what is held, kept and cordoned.

    ``touched`` lists the numbers of nodes that changed, in order; who has read to ``forgotten_touches + len(touched)``
    knows them all. ``views`` are the allocator's own memory, ``recent`` some of
    them by the identity of what was asked. ``openings`` counts what could let a waiting claim in.
    """

    def __init__(self) -> None:
        self.devices: dict[str, Device] = {}
        self.holders: dict[str, str] = {}
        self.sharers: dict[str, dict[str, AllocatedDevice]] = {}
        self.cordons: dict[str, Cordon] = {}
        self.reserved: dict[str, dict[str, None]] = {}
        self.nodes: list[Node] = []
        self.touched: list[int] = []
        self.forgotten_touches = 0
        self.views: dict[Any, Any] = {}
        self.recent: dict[int, Any] = {}
        self.purse = Purse()
        self.policy: Any = None
        self.sights = 0
        self.openings = 0
        self.fair = FairTree()
        self._by_name: dict[str, Node] = {}
        self._here: dict[str, dict[str, None]] = {}
        self.dirty: set[str] = set()
        self._totals: dict[str, dict[str, int]] = {}
        self._total: dict[str, int] = {}

    # --- devices

    def place(self, device: Device) -> None:
        """Take in a device as it is now."""
        self.sights += 1
        self.openings += 1
        before = self.devices.get(device.id)
        if before is not None and before.location.node != device.location.node:
            self._leave(before)
        self.devices[device.id] = device
        self._here.setdefault(device.location.node, {})[device.id] = None
        self.dirty.add(device.location.node)

    def forget(self, device_id: str) -> None:
        """Take out a device."""
        self.sights += 1
        device = self.devices.pop(device_id, None)
        if device is not None:
            self._leave(device)

    def _leave(self, device: Device) -> None:
        self._here[device.location.node].pop(device.id, None)
        self.dirty.add(device.location.node)

    def settle(self) -> None:
        """Bring the nodes whose devices changed up to date."""
        if not self.dirty:
            return
        for name in sorted(self.dirty):
            node = self._by_name.get(name)
            if node is None:
                node = self._by_name[name] = Node(name, len(self.nodes))
                self.nodes.append(node)
            self._rebuild(node)
            self._count(name)
        self.dirty.clear()
        self.fair.set_total({kind: amount for kind, amount in self._total.items() if amount})

    def _rebuild(self, node: Node) -> None:
        here = self._here[node.name]
        held = [given for device_id in here for given in self.held(device_id)]
        whole = NODE + node.name in self.cordons
        node.rebuild(
            self.devices,
            here,
            held,
            cordoned=[device_id for device_id in here if whole or device_id in self.cordons],
            reserved=[device_id for device_id in here if device_id in self.reserved],
        )
        self.touched.append(node.index)

    def _count(self, name: str) -> None:
        """Count what a machine adds to the whole, in thousandths of devices by kind; a part is not counted twice."""
        here = [self.devices[device_id] for device_id in self._here[name]]
        parents = {(device.parent, device.kind) for device in here if device.allocatable}
        mine: dict[str, int] = {}
        for device in here:
            if device.allocatable and (device.id, device.kind) not in parents:
                mine[device.kind.value] = mine.get(device.kind.value, 0) + 1000
        for kind, amount in self._totals.get(name, {}).items():
            self._total[kind] -= amount
        for kind, amount in mine.items():
            self._total[kind] = self._total.get(kind, 0) + amount
        self._totals[name] = mine

    def node(self, name: str) -> Node | None:
        """Return the index of one machine's devices."""
        self.settle()
        return self._by_name.get(name)

    # --- who has them

    @abstractmethod
    def held(self, device_id: str) -> Iterable[AllocatedDevice]:
        """Yield what is given of one device, to whomever."""

    def holders_of(self, device_id: str) -> tuple[str, ...]:
        """Return the leases that have a device, a part of it or a share in it."""
        alone = self.holders.get(device_id)
        others = tuple(dict.fromkeys(key.partition("\n")[0] for key in self.sharers.get(device_id, ())))
        return others if alone is None else (alone, *others)

    def _take(self, lease: str, devices: Sequence[AllocatedDevice]) -> None:
        holders = self.holders
        for device in devices:
            if device.uses or device.partition:
                self.sharers.setdefault(device.id, {})[f"{lease}\n{device.slot}"] = device
            else:
                holders[device.id] = lease
        self._mark(devices, True)

    def _give(self, lease: str, devices: Sequence[AllocatedDevice]) -> None:
        for device in devices:
            if device.uses or device.partition:
                others = self.sharers[device.id]
                del others[f"{lease}\n{device.slot}"]
                if not others:
                    del self.sharers[device.id]
            else:
                del self.holders[device.id]
        self._mark(devices, False)
        self.openings += 1

    def _mark(self, devices: Sequence[AllocatedDevice], yes: bool) -> None:
        by_name, known = self._by_name, self.devices
        if devices:
            node = by_name.get(devices[0].node)
            # What is on a node that is up to date is there, whatever else has moved.
            if node is not None and node.name not in self.dirty and (node.knows(devices) or node.has_all(devices)):
                self._mark_on(node, devices, yes)
                return
        last: Node | None = None
        batch: list[AllocatedDevice] = []
        for device in devices:  # of one node after the other, as they were chosen
            found = known.get(device.id)  # a machine may have got another name since
            node = by_name.get(found.location.node if found is not None else device.node)
            if node is None or node.name in self.dirty or device.id not in node.place:
                continue  # what is built afresh anyway counts it then, and must not count it twice
            if node is not last:
                if last is not None:
                    self._mark_on(last, batch, yes)
                last, batch = node, []
            batch.append(device)
        if last is not None:
            self._mark_on(last, batch, yes)

    def _mark_on(self, node: Node, devices: Sequence[AllocatedDevice], yes: bool) -> None:
        if yes:
            node.take(devices)
        else:
            node.give(devices)
        self.touched.append(node.index)
        if len(self.touched) > 4096:
            self._forget_touches()

    def _forget_touches(self) -> None:
        if len(self.touched) > 4096 + 4 * len(self.nodes):
            self.forgotten_touches += len(self.touched)
            self.touched.clear()

    # --- kept and cordoned

    def _keep(self, claim: str, devices: Iterable[AllocatedDevice]) -> None:
        for device in devices:
            self.reserved.setdefault(device.id, {})[claim] = None
            self._disturb(device.id)

    def _unkeep(self, claim: str, devices: Iterable[AllocatedDevice]) -> None:
        for device in devices:
            claims = self.reserved.get(device.id)
            if claims is not None:
                claims.pop(claim, None)
                if not claims:
                    del self.reserved[device.id]
            self._disturb(device.id)
        self.openings += 1

    def _cordon(self, cordon: Cordon) -> None:
        self.cordons[cordon.target] = cordon
        self._disturb_target(cordon.target)

    def _uncordon(self, target: str) -> None:
        self.cordons.pop(target, None)
        self._disturb_target(target)
        self.openings += 1

    def _disturb_target(self, target: str) -> None:
        if not target.startswith(NODE):
            self._disturb(target)
        elif target.removeprefix(NODE) in self._here:
            self.dirty.add(target.removeprefix(NODE))

    def _disturb(self, device_id: str) -> None:
        device = self.devices.get(device_id)
        if device is not None:
            self.dirty.add(device.location.node)
