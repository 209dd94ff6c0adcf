"""The devices by node, as sets of bits that are kept up to date: what is there, what is fit, what is held."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from hal.broker.allocation.facts import (
    Key,
    Layout,
    Matcher,
    Matches,
    Uses,
    ancestors,
    capacity_of,
    compiled_cel,
    groups_by,
    has_profile,
    matcher_of,
    numa_of,
    numa_places,
    parts_seen,
    selector_of,
    shared,
    switch_places,
    switch_ports,
    why_unfit,
)
from hal.broker.allocation.handout import REMEMBERED, Handout
from hal.model.claim import Locality, Request
from hal.model.device import Device
from hal.model.lease import AllocatedDevice

__all__ = [
    "Node", "Partial", "ancestors", "compiled_cel", "has_profile", "numa_of", "selector_of", "switch_ports",
    "why_unfit",
]  # fmt: skip

Partial = tuple[tuple[int, Uses, tuple[str, ...]], ...]
"""Devices that are given in part and have room perhaps: position, what is used up, which parts are made."""


class Node(Handout):
    """One machine's devices, by position; ``free`` is what may be handed out now to who tolerates nothing.

    ``open`` is what nobody holds, keeps or has cordoned, fit or not. ``partial`` are devices that are shared or parted.
    ``fate[p]`` is position ``p`` with its ancestors and descendants: one of them held, none of the others is free.
    ``version`` changes when the devices do, not when they are claimed.
    """

    __slots__ = (
        "_above", "_barred", "_cordoned", "_fits", "_kept", "_masks", "_parts", "_plain", "_users", "_uses", "_whole",
        "fate", "fit", "free", "full", "index", "layout", "loners", "made", "open", "partial", "place", "rack",
        "version",
    )  # fmt: skip

    def __init__(self, name: str, index: int) -> None:
        super().__init__(name)
        self.index = index
        self.rack: str | None = None
        self.place: dict[str, int] = {}
        self.fate: tuple[int, ...] = ()
        self.loners = True
        self.fit = self.free = self.open = self.full = 0
        self.partial: Partial = ()
        self.layout = Layout((), (), (), (), (), False)
        self.version = 0
        self.made: dict[int, dict[str, int]] = {}
        self._whole = self._barred = self._cordoned = self._kept = 0
        self._plain = False
        self._uses: dict[int, dict[str, int]] = {}
        self._users: dict[int, int] = {}
        self._parts: dict[int, tuple[str, ...]] = {}
        self._above: dict[int, list[Device | str]] = {}
        self._fits: dict[tuple[str, ...], int] = {}
        self._masks: dict[Matcher, int] = {}

    # --- what is there

    def rebuild(
        self,
        devices: Mapping[str, Device],
        here: Iterable[str],
        held: Iterable[AllocatedDevice],
        cordoned: Collection[str] = (),
        reserved: Collection[str] = (),
    ) -> None:
        """Take the devices of this node afresh, what of them is given, and which ids are cordoned or kept."""
        mine = [devices[device_id] for device_id in here]
        held = tuple(held)
        ids = {device.id for device in held}
        self.devices = [device for device in mine if device.allocatable or device.id in ids]
        self.place = {device.id: position for position, device in enumerate(self.devices)}
        self.rack = next((device.location.rack for device in mine if device.location.rack), None)
        self.full = (1 << len(self.devices)) - 1
        self.fit = 0
        self._above = {}
        fate = [1 << position for position in range(len(self.devices))]
        for position, device in enumerate(self.devices):
            above = ancestors(device, devices)
            if above:
                self._above[position] = above
            if why_unfit(device, above) is None:
                self.fit |= 1 << position
            for ancestor in above:
                other = self.place.get(ancestor if isinstance(ancestor, str) else ancestor.id)
                if other is not None:
                    fate[position] |= 1 << other
                    fate[other] |= 1 << position
        self.fate = tuple(fate)
        self.loners = all(mask.bit_count() == 1 for mask in fate)
        self.layout = shared(
            Layout(
                () if self.loners else self.fate,
                numa_places(self.devices),
                *switch_places(self.devices, switch_ports(mine)),
                tuple(device.kind for device in self.devices),
                self.rack is not None,
            )
        )
        self.made = parts_seen(self.devices, self.place)
        self._whole = 0
        self._uses, self._users, self._parts = {}, {}, {}
        self._cordoned = self._touched_by(frozenset(cordoned), devices)
        self._kept = self.mask_of(reserved)
        self._barred = self._cordoned | self.related(self._kept)
        self._fits, self._masks = {}, {}
        self._forget()
        self.version += 1
        self.take(held)

    def _touched_by(self, ids: frozenset[str], devices: Mapping[str, Device]) -> int:
        """Return the positions of the devices of these ids, and of what is above or below them, given or not."""
        mask = self.related(self.mask_of(ids))
        for device_id in ids:
            if device_id not in self.place and device_id in devices:
                above = ancestors(devices[device_id], devices)
                mask |= self.mask_of([other if isinstance(other, str) else other.id for other in above])
        if ids:
            for position, above in self._above.items():
                if any((other if isinstance(other, str) else other.id) in ids for other in above):
                    mask |= 1 << position
        return mask

    def mask_of(self, ids: Iterable[str]) -> int:
        """Return the positions of the devices of these ids that are here."""
        mask = 0
        for device_id in ids:
            position = self.place.get(device_id)
            if position is not None:
                mask |= 1 << position
        return mask

    def related(self, mask: int) -> int:
        """Return the positions that share their fate with one of these, themselves included."""
        if self.loners:
            return mask
        found, rest = 0, mask
        while rest:
            bit = rest & -rest
            rest ^= bit
            found |= self.fate[bit.bit_length() - 1]
        return found

    # --- what is held

    def has_all(self, devices: Iterable[AllocatedDevice]) -> bool:
        """True if all devices are among those of this node."""
        place = self.place
        for device in devices:  # noqa: SIM110 - half the time of all()
            if device.id not in place:
                return False
        return True

    def take(self, devices: Iterable[AllocatedDevice]) -> None:
        """Mark devices, or what is used or made of them, as held."""
        known = self._masked.get(id(devices))
        if known is not None and known[0] is devices:
            whole = self._whole = self._whole | known[1]
            if self._plain:
                self.open = open_ = self.full & ~(whole | self._barred)
                self.free = self.fit & open_
            else:
                self._count()
            return
        place = self.place
        mask = 0
        for device in devices:
            position = place.get(device.id)
            if position is None:
                continue
            if device.uses:
                used = self._uses.setdefault(position, {})
                for name, amount in device.uses.items():
                    used[name] = used.get(name, 0) + amount
                self._users[position] = self._users.get(position, 0) + 1
            elif device.partition:
                self._parts[position] = tuple(sorted((*self._parts.get(position, ()), device.partition)))
            else:
                mask |= 1 << position
        self._whole |= mask
        self._count()

    def give(self, devices: Iterable[AllocatedDevice]) -> None:
        """Mark devices, or what is used or made of them, as given back."""
        known = self._masked.get(id(devices))
        if known is not None and known[0] is devices:
            whole = self._whole = self._whole & ~known[1]
            if self._plain:
                self.open = open_ = self.full & ~(whole | self._barred)
                self.free = self.fit & open_
            else:
                self._count()
            return
        place = self.place
        mask = 0
        for device in devices:
            position = place.get(device.id)
            if position is None:
                continue
            if device.uses:
                self._stop_using(self._uses, self._users, position, device)
            elif device.partition:
                self._unmake(self._parts, position, device)
            else:
                mask |= 1 << position
        self._whole &= ~mask
        self._count()

    @staticmethod
    def _stop_using(
        uses: dict[int, dict[str, int]], users: dict[int, int], position: int, device: AllocatedDevice
    ) -> None:
        users[position] -= 1
        if not users[position]:
            del users[position], uses[position]
            return
        used = uses[position]
        for name, amount in device.uses.items():
            used[name] -= amount
            if not used[name]:
                del used[name]

    @staticmethod
    def _unmake(parts: dict[int, tuple[str, ...]], position: int, device: AllocatedDevice) -> None:
        left = list(parts[position])
        left.remove(device.partition)
        if left:
            parts[position] = tuple(left)
        else:
            del parts[position]

    @property
    def held(self) -> int:
        """The positions of which something is held: all, a share or a part."""
        held = self._whole
        for position in (*self._uses, *self._parts):
            held |= 1 << position
        return held

    def _count(self) -> None:
        # Plain: nothing is given in part and nothing shares its fate, so that what is given is all that matters.
        self._plain = self.loners and not (self._uses or self._parts or self.made)
        if self._plain:
            self.open = open_ = self.full & ~(self._whole | self._barred)
            self.free = self.fit & open_
            self.partial = ()
            return
        self.open, self.partial = self._situation(self._whole, self._uses, self._parts, self._barred)
        self.free = self.fit & self.open

    def _situation(
        self, whole: int, uses: Mapping[int, Mapping[str, int]], parts: Mapping[int, tuple[str, ...]], barred: int
    ) -> tuple[int, Partial]:
        """Return what is open, and what has room perhaps though it is given in part."""
        held = whole
        for position in (*uses, *parts):
            held |= 1 << position
        entries: list[tuple[int, Uses, tuple[str, ...]]] = []
        for position in sorted({*uses, *parts, *self.made}):
            bit = 1 << position
            made = self.made.get(position, {})
            known = 0
            for other in made.values():
                known |= 1 << other
            if barred & bit or whole & bit or self.fate[position] & held & ~bit & ~known:
                continue
            if position in uses:
                if not self.fate[position] & held & ~bit:
                    entries.append((position, tuple(sorted(uses[position].items())), ()))
            else:
                slots = sorted({*parts.get(position, ()), *made})
                entries.append((position, (), tuple(slots)))
        return self.full & ~(self.related(held) | barred), tuple(entries)

    def what_if(
        self, freed: Iterable[AllocatedDevice], barred: Collection[str], kept: Collection[str]
    ) -> tuple[int, Partial]:
        """Return ``open`` and ``partial`` as if some were given back, others held, and others not kept (all by id)."""
        whole, uses, parts = self._whole, self._uses, self._parts
        users = self._users
        copied = False
        for device in freed:
            position = self.place.get(device.id)
            if position is None:
                continue
            if not device.uses and not device.partition:
                whole &= ~(1 << position)
                continue
            if not copied:
                uses = {p: dict(used) for p, used in uses.items()}
                users, parts, copied = dict(users), dict(parts), True
            if device.uses:
                self._stop_using(uses, users, position, device)
            else:
                self._unmake(parts, position, device)
        closed = self._barred
        if kept:
            closed = self._cordoned | self.related(self._kept & ~self.mask_of(kept))
        closed |= self.related(self.mask_of(barred))
        return self._situation(whole, uses, parts, closed)

    def emptied(self) -> tuple[int, Partial]:
        """Return ``open`` and ``partial`` as if nothing were held or kept; what is cordoned stays so."""
        return self._situation(0, {}, {}, self._cordoned)

    # --- what fits

    def fit_for(self, tolerate: tuple[str, ...]) -> int:
        """Return the positions that are fit for who can live with these types of conditions."""
        if not tolerate:
            return self.fit
        mask = self._fits.get(tolerate)
        if mask is None:
            mask = 0
            for position, device in enumerate(self.devices):
                if why_unfit(device, self._above.get(position, ()), tolerate) is None:
                    mask |= 1 << position
            self._fits[tolerate] = mask
        return mask

    def matching(self, request: Request) -> int:
        """Return the positions of what was asked for, whoever has it and however it is."""
        return self.matching_by(matcher_of(request))

    def matching_by(self, matcher: Matcher) -> int:
        """Return the positions of the right kind for which all selectors are true, and that are large enough."""
        mask = self._masks.get(matcher)
        if mask is None:
            kind, where, cel, capacity, profile = matcher
            tests: list[Matches] = [selector_of(where)] if where else []
            tests += [compiled_cel(text) for text in cel]
            mask = 0
            for position, device in enumerate(self.devices):
                if device.kind is not kind or not device.allocatable:
                    continue
                large = all(capacity_of(device, name) >= amount for name, amount in capacity)
                if large and (not profile or has_profile(device, profile)) and all(t.matches(device) for t in tests):
                    mask |= 1 << position
            if len(self._masks) >= REMEMBERED:
                self._masks.clear()
            self._masks[matcher] = mask
        return mask

    def groups(self, what: str) -> dict[Key, int]:
        """Return the places of one level (or the values of an attribute) on this node, each under its own name."""
        if what == Locality.NODE:
            return {(self.name,): self.full}
        if what == Locality.NUMA:
            return {(self.name, number): mask for number, mask in enumerate(self.layout.numa)}
        if what == Locality.PCI_SWITCH:
            return {(self.name, number): mask for number, mask in enumerate(self.layout.switches)}
        return groups_by(what, self.name, self.rack, self.devices)

    def domains(self, level: str) -> tuple[int, ...]:
        """Return the places of one level, or the groups of an attribute, on this node."""
        return tuple(self.groups(level).values())
