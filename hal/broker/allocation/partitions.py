"""Where parts may be made on one device: MIG's table of legal placements, and the choice that leaves most of them.

A device tells its table in the attribute ``partition_placements``, a line for each profile: its name, how many slices
of memory it takes, and at which slices one may start: ``3g.40gb:4:0,4``. What is taken is a set of bits, one a slice;
one more bit stands for the media engines, of which a GPU has one set: a profile that ends in ``+me`` takes them. That
parts do not share a slice of memory is enough for NVIDIA's tables: the slices for computing then suffice, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from hal.model.device import Device

MEDIA = "+me"
"""The suffix of profiles that take the media engines (NVIDIA's MIG user guide)."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A shape of parts: its size in slices of memory, and the slices at which one may start."""

    name: str
    size: int
    starts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PartitionTable:
    """The legal placements on one sort of device."""

    profiles: tuple[Profile, ...]

    @classmethod
    def parse(cls, lines: Iterable[str]) -> PartitionTable:
        """Return the table of lines such as ``1g.10gb:1:0,1,2,3,4,5,6``; :exc:`ValueError` for others."""
        profiles = []
        for line in lines:
            name, size, starts = line.split(":")
            profile = Profile(name, int(size), tuple(sorted({int(start) for start in starts.split(",") if start})))
            if not name or profile.size < 1 or any(start < 0 for start in profile.starts):
                raise ValueError(f"no placements: {line!r}")
            profiles.append(profile)
        return cls(tuple(profiles))

    @property
    def slices(self) -> int:
        """How many slices of memory there are, as far as a placement reaches."""
        return max([start + profile.size for profile in self.profiles for start in profile.starts], default=0)

    def profile(self, name: str) -> Profile | None:
        """Return a profile by its name. A compute instance (``1c.3g.40gb``) lies where its whole (``3g.40gb``) does."""
        for profile in self.profiles:
            if profile.name == name:
                return profile
        head, _, whole = name.partition("c.")
        return self.profile(whole) if head.isdigit() and whole else None

    def footprint(self, name: str, start: int) -> int:
        """Return what a part takes; of an unknown profile everything, since nobody knows its size."""
        profile = self.profile(name)
        if profile is None:
            return (2 << self.slices) - 1
        media = 1 << self.slices if profile.name.endswith(MEDIA) else 0
        return ((1 << profile.size) - 1 << start) | media

    def occupied(self, existing: Iterable[tuple[int, int]]) -> int:
        """Return the slices that parts take, each given as (start, size)."""
        taken = 0
        for start, size in existing:
            taken |= (1 << size) - 1 << start
        return taken

    def fits(self, name: str, taken: int) -> tuple[int, ...]:
        """Return the slices at which one more part may start."""
        profile = self.profile(name)
        starts = profile.starts if profile is not None else ()
        return tuple([start for start in starts if not self.footprint(name, start) & taken])

    def count_fits(self, name: str, taken: int) -> int:
        """Return how many parts of one profile fit at once: of equal pieces, the first that ends first is right."""
        count = 0
        for start in self.fits(name, taken):
            place = self.footprint(name, start)
            if not place & taken:
                taken |= place
                count += 1
        return count

    def room(self, taken: int) -> tuple[int, int]:
        """Return how many placements are left, of all profiles, and how many slices the largest of them has."""
        left = [profile.size for profile in self.profiles for _ in self.fits(profile.name, taken)]
        return len(left), max(left, default=0)

    def choose(self, name: str, taken: int) -> int | None:
        """Return the start that leaves most placements to others, then the largest one; None if there is none."""
        return _choose(self, name, taken)

    def choose_all(self, names: Sequence[str], taken: int) -> tuple[int, ...] | None:
        """Return starts for several parts at once, in their order, that leave most; None if they do not all fit."""
        found = _choose_all(self, tuple(sorted(names)), taken)
        if found is None:
            return None
        starts = {name: [start for other, start in found[1] if other == name] for name in names}
        return tuple([starts[name].pop(0) for name in names])


@lru_cache(maxsize=16384)
def _choose(table: PartitionTable, name: str, taken: int) -> int | None:
    best: tuple[tuple[int, int], int] | None = None
    for start in table.fits(name, taken):
        room = table.room(taken | table.footprint(name, start))
        if best is None or room > best[0]:
            best = room, start
    return best[1] if best is not None else None


@lru_cache(maxsize=16384)
def _choose_all(
    table: PartitionTable, names: tuple[str, ...], taken: int
) -> tuple[tuple[int, int], tuple[tuple[str, int], ...]] | None:
    """Try every placement of the first part with the best of the others; equal sets of slices are tried once."""
    if not names:
        return table.room(taken), ()
    best: tuple[tuple[int, int], tuple[tuple[str, int], ...]] | None = None
    for start in table.fits(names[0], taken):
        rest = _choose_all(table, names[1:], taken | table.footprint(names[0], start))
        if rest is not None and (best is None or rest[0] > best[0]):
            best = rest[0], ((names[0], start), *rest[1])
    return best


@lru_cache(maxsize=1024)
def table_of(lines: tuple[str, ...]) -> PartitionTable | None:
    """Return the table that a device tells, or None if that is no table: then nothing can be made on it."""
    try:
        return PartitionTable.parse(lines)
    except ValueError:
        return None


def taken_by(table: PartitionTable, parts: Iterable[str]) -> int:
    """Return what parts take, each given as ``profile@start``."""
    taken = 0
    for part in parts:
        name, _, start = part.rpartition("@")
        taken |= table.footprint(name, int(start)) if start.isdigit() else (2 << table.slices) - 1
    return taken


def table_told(lines: object) -> PartitionTable | None:
    """Return the table that the value of an attribute tells, or None: the device has none, or tells something else."""
    if not isinstance(lines, tuple) or not all(isinstance(line, str) for line in lines):
        return None
    return table_of(lines)


def best_placement(lines: object, parts: Iterable[str], profile: str) -> int | None:
    """Return where one more part is best made beside ``parts`` (``profile@start``) on a device with these placements.

    None if it fits nowhere, or if the device tells no placements (``lines`` is the value of its attribute).
    """
    table = table_told(lines)
    return table.choose(profile, taken_by(table, parts)) if table is not None else None


def placements_of(device: Device) -> dict[str, tuple[int, ...]]:
    """Return where parts of each profile may start on a device; empty if it tells no placements."""
    table = table_told(device.value("partition_placements"))
    return {profile.name: profile.starts for profile in table.profiles} if table is not None else {}


def fits_beside(device: Device, part: str, parts: Iterable[str]) -> bool:
    """Tell whether a part (``profile@start``) may lie where it says beside others on a device."""
    table = table_told(device.value("partition_placements"))
    profile, _, start = part.rpartition("@")
    if table is None or not start.isdigit():
        return False
    return int(start) in table.fits(profile, taken_by(table, parts))
