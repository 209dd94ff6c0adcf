"""What a tenant may not exceed, and what it is promised: quotas, guarantees, and how many claims it may have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Pairs = tuple[tuple[int, int], ...]
"""Amounts by the index of their resource, in the order of the indices; zeros are left out."""


@dataclass(frozen=True)
class QuotaExceeded:
    """The claim would lift the node ``path`` above its quota of ``resource``: ``used + asked > quota``."""

    path: str
    resource: str
    used: int
    asked: int
    quota: int

    def __str__(self) -> str:
        whose = f"tenant {self.path!r}" if self.path else "the root"
        return f"{whose} uses {self.used} of its quota of {self.quota} {self.resource}, and {self.asked} were asked for"


@dataclass(frozen=True)
class LimitReached:
    """The node ``path`` has as many ``what`` (``leases`` or ``waiting claims``) as it may have."""

    path: str
    what: str
    limit: int

    def __str__(self) -> str:
        whose = f"tenant {self.path!r}" if self.path else "the root"
        return f"{whose} has reached its limit of {self.limit} {self.what}"


def exceeded(quota: Pairs, use: Sequence[int], asked: Pairs) -> int | None:
    """Return the index of the first resource of which ``use`` and ``asked`` together exceed the quota."""
    wanted = dict(asked)
    for index, most in quota:
        more = wanted.get(index, 0)
        if more and use[index] + more > most:
            return index
    return None


def covers(guarantee: Pairs, use: Sequence[int], asked: Pairs, *, held: bool = False) -> bool:
    """Whether everything asked for is guaranteed: with it (``held``: it is in ``use`` already) no more is used.

    What is not guaranteed at all is not covered, and a claim for nothing is not, either.
    """
    promised = dict(guarantee)
    if not asked:
        return False
    return all(index in promised and use[index] + (0 if held else amount) <= promised[index] for index, amount in asked)


def bits_of(mask: int) -> Iterator[int]:
    """Yield the numbers of the bits that are set, the lowest first."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest
