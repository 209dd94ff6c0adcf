"""All devices at one moment, as a value: found by any true name, merged from several drivers, compared with another."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import msgspec

from hal.errors import DeviceNotFound
from hal.model.device import Device, Link, Location
from hal.model.event import EventType
from hal.model.kind import Kind

_KINDS = {kind: place for place, kind in enumerate(Kind)}
_JOINED_BY = ("pci:", "guid:", "nd:", "rank:", "rshim:", "uuid:", "rdma:")
_DIGITS = re.compile(r"(\d+)")


def natural(text: str) -> tuple[str | int, ...]:
    """Return a sort key under which ``gpu10`` comes after ``gpu9``."""
    # What stands between numbers is at the even places, also if it is nothing: like is compared with like.
    parts: list[str | int] = [*_DIGITS.split(text)]
    parts[1::2] = [int(part) for part in parts[1::2]]
    return not parts[0] and len(parts) > 1, *parts


class Change(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One difference between two inventories; ``fields`` says what changed, as ``name: before -> after``."""

    type: EventType
    device: Device
    fields: tuple[str, ...] = ()


class Inventory:
    """An immutable set of devices, ordered by node, kind and name."""

    __slots__ = ("_aliases", "_by_id", "_children", "devices")

    def __init__(self, devices: Iterable[Device]) -> None:
        devices = tuple(devices)
        nodes = {node: natural(node) for node in {device.location.node for device in devices}}
        self.devices: tuple[Device, ...] = tuple(
            sorted(devices, key=lambda d: (nodes[d.location.node], _KINDS[d.kind], natural(d.name), d.id))
        )
        self._by_id = {device.id: device for device in self.devices}
        self._aliases: dict[str, list[Device]] | None = None
        self._children: dict[str, list[Device]] | None = None

    def __iter__(self) -> Iterator[Device]:
        return iter(self.devices)

    def __len__(self) -> int:
        return len(self.devices)

    def __contains__(self, device_id: object) -> bool:
        return device_id in self._by_id

    def get(self, text: str) -> Device | None:
        """Return the one device of that id, name (``gpu0``, ``node/gpu0``) or alias (with or without its space).

        None if there is none, or more than one.
        """
        exact = self._by_id.get(text)
        if exact is not None:
            return exact
        if self._aliases is None:
            self._aliases = {}
            for device in self.devices:
                bare = (name.partition(":")[2] for name in device.aliases)
                for name in {device.name, f"{device.location.node}/{device.name}", *device.aliases, *bare}:
                    self._aliases.setdefault(name, []).append(device)
        found = self._aliases.get(text, ())
        return found[0] if len(found) == 1 else None

    def find(self, text: str) -> Device:
        """Like :meth:`get`, but raise :class:`~hal.errors.DeviceNotFound` that says whether it was ambiguous."""
        device = self.get(text)
        if device is not None:
            return device
        several = (self._aliases or {}).get(text, ())
        if several:
            names = ", ".join(f"{d.location.node}/{d.name}" for d in several[:4])
            raise DeviceNotFound(
                f"{len(several)} devices are called {text!r}", device=text, during="look-up", hint=f"say one of {names}"
            )
        raise DeviceNotFound(
            "no device has that id, name or alias", device=text, during="look-up", hint="hal-probe list"
        )

    def children(self, device_id: str) -> tuple[Device, ...]:
        """Return the devices that share the fate of this one."""
        if self._children is None:
            self._children = {}
            for device in self.devices:
                if device.parent is not None:
                    self._children.setdefault(device.parent, []).append(device)
        return tuple(self._children.get(device_id, ()))

    def of_kind(self, *kinds: Kind) -> tuple[Device, ...]:
        """Return the devices of some kinds."""
        return tuple(device for device in self.devices if device.kind in kinds)


def merge(layers: Iterable[tuple[int, Iterable[Device]]]) -> Inventory:
    """Unite what several drivers found, each layer with its driver's priority.

    Two findings are one device if they are on one node and have one id, or one kind (or the lesser is a bare PCI
    function) and a common name such as a PCI address. The higher priority gives identity; facts it lacks are filled in.
    """
    groups: list[list[Device]] = []
    by_key: dict[tuple[str, str], list[tuple[Kind, list[Device]]]] = {}
    for _, devices in sorted(layers, key=lambda layer: -layer[0]):
        for device in devices:
            keys = _keys(device)
            group = _group_of(device, keys, by_key)
            if group is None:
                group = []
                groups.append(group)
            group.append(device)
            for key in keys:
                by_key.setdefault(key, []).append((device.kind, group))
    renamed = {device.id: group[0].id for group in groups for device in group[1:] if device.id != group[0].id}
    united = [_unite(group) if len(group) > 1 else group[0] for group in groups]
    return Inventory(_rename(device, renamed) for device in united) if renamed else Inventory(united)


def _keys(device: Device) -> list[tuple[str, str]]:
    node = device.location.node
    return [(node, device.id), *((node, name) for name in device.aliases if name.startswith(_JOINED_BY))]


def _group_of(
    device: Device, keys: list[tuple[str, str]], by_key: dict[tuple[str, str], list[tuple[Kind, list[Device]]]]
) -> list[Device] | None:
    for key in keys:
        for kind, group in by_key.get(key, ()):
            if key[1] == device.id or kind is device.kind or device.kind is Kind.PCI:
                return group
    return None


def _unite(group: list[Device]) -> Device:
    first = group[0]
    attributes = dict(first.attributes)
    capacity = dict(first.capacity)
    aliases = dict.fromkeys(first.aliases)
    links: tuple[Link, ...] = first.links
    conditions = dict.fromkeys(first.conditions)
    location, parent = first.location, first.parent
    for other in group[1:]:
        for name, attribute in other.attributes.items():
            mine = attributes.get(name)
            if mine is None or (not mine.known and attribute.known):
                attributes[name] = attribute
        capacity = {**other.capacity, **capacity}
        aliases.update(dict.fromkeys(other.aliases))
        conditions.update(dict.fromkeys(other.conditions))
        links = links or other.links
        location = _fill(location, other.location)
        parent = parent or other.parent
    return msgspec.structs.replace(
        first,
        attributes=attributes,
        capacity=capacity,
        aliases=tuple(aliases),
        links=links,
        conditions=tuple(conditions),
        location=location,
        parent=parent,
    )


def _fill(location: Location, other: Location) -> Location:
    return Location(
        node=location.node,
        rack=location.rack or other.rack,
        numa_node=other.numa_node if location.numa_node is None else location.numa_node,
        pci_address=location.pci_address or other.pci_address,
        pci_path=location.pci_path or other.pci_path,
        slot=location.slot or other.slot,
    )


def _rename(device: Device, renamed: dict[str, str]) -> Device:
    parent = renamed.get(device.parent or "", device.parent)
    links = tuple(
        msgspec.structs.replace(link, peer=renamed[link.peer]) if link.peer in renamed else link
        for link in device.links
    )
    if parent == device.parent and links == device.links:
        return device
    return msgspec.structs.replace(device, parent=parent, links=links)


def diff(old: Inventory, new: Inventory) -> tuple[Change, ...]:
    """Return what it takes to get from one inventory to the other, keyed by identity."""
    changes: list[Change] = []
    for device in old:
        if device.id not in new:
            changes.append(Change(type=EventType.REMOVED, device=device))
    for device in new:
        before = old.get(device.id)
        if before is None or before.id != device.id:
            changes.append(Change(type=EventType.ADDED, device=device))
        elif before != device:
            changes.append(Change(type=EventType.CHANGED, device=device, fields=_differences(before, device)))
    return tuple(changes)


def _differences(before: Device, after: Device) -> tuple[str, ...]:
    lines: list[str] = []
    for name in sorted(set(before.attributes) | set(after.attributes)):
        was, now = before.attributes.get(name), after.attributes.get(name)
        if was != now:
            lines.append(f"{name}: {_say(was)} -> {_say(now)}")
    for field in Device.__struct_fields__:
        if field in ("id", "attributes", "conditions", "links"):
            continue
        was, now = getattr(before, field), getattr(after, field)
        if was != now:
            lines.append(f"{field}: {was} -> {now}")
    was_linked, is_linked = ({_link(one): one.state for one in device.links} for device in (before, after))
    for name in sorted(was_linked.keys() | is_linked.keys()):
        if was_linked.get(name) != is_linked.get(name):
            lines.append(f"link {name}: {was_linked.get(name, 'nothing')} -> {is_linked.get(name, 'nothing')}")
    gone = {c.type for c in before.conditions} - {c.type for c in after.conditions}
    fresh = {c.type for c in after.conditions} - {c.type for c in before.conditions}
    lines.extend(f"condition {name} cleared" for name in sorted(gone))
    lines.extend(f"condition {name}" for name in sorted(fresh))
    return tuple(lines)


def _link(link: Link) -> str:
    far = f" to {link.peer}" if link.peer else ""
    return f"{link.type}{far}{f' ({link.detail})' if link.detail else ''}, {link.lanes} lanes"


def _say(attribute: object) -> str:
    value = getattr(attribute, "value", None)
    if value is not None:
        return str(value)
    return str(getattr(attribute, "absent", None) or "nothing")
