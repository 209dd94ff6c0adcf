"""One choice among devices of one universe, as sets of bits: what is wanted, what binds it, and the two answers.

A set of devices is an integer, one bit a device. Who asks builds a :class:`Problem` from a node, a rack or all nodes;
:mod:`hal.broker.allocation.solver` answers with an :class:`Assignment`, or with a :class:`Conflict` that is a proof.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

Order = Callable[[int, int], int]
"""``pick(mask, count)``: at most ``count`` bits of the mask, the preferred ones first."""


class Bond(Enum):
    """What a rule asks: all in one group; no two in one group; the n-th devices of the requests in one group."""

    SAME = "same"
    DISTINCT = "distinct"
    PAIRS = "pairs"


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule over ``requests`` (their numbers). ``groups`` are masks; a device in none of them satisfies no rule.

    For ``SAME`` and ``PAIRS`` the groups may nest and overlap (PCI switches do); for ``DISTINCT`` they are disjoint.
    """

    bond: Bond
    groups: tuple[int, ...]
    requests: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """``counts[i]`` devices out of ``masks[i]`` for each request, no device twice, every rule kept.

    ``fate[p]`` is the set of devices that cannot be given away together with device ``p``, itself included (empty:
    none).
    """

    masks: tuple[int, ...]
    counts: tuple[int, ...]
    rules: tuple[Rule, ...] = ()
    fate: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Assignment:
    """The devices of each request, as a mask; ``groups`` are those chosen by the rules of ``SAME``, 0 for the others.

    ``pairs[k][j]`` are the bits of the ``j``-th tuple of the ``k``-th rule of ``PAIRS``, in the order of its requests.
    """

    masks: tuple[int, ...]
    groups: tuple[int, ...] = ()
    pairs: tuple[tuple[tuple[int, ...], ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Conflict:
    """A proof of no: these requests under these rules cannot be met together, and without any one of them they can.

    ``needed`` and ``available`` count devices where numbers alone are the proof (Hall: the requests together need more
    than all that fit any of them; with one rule, what the rule leaves: devices of the best group, groups, or tuples);
    ``fate`` is True if devices that share their fate are part of the conflict.
    """

    requests: tuple[int, ...]
    rules: tuple[int, ...] = ()
    needed: int = 0
    available: int = 0
    fate: bool = False


class OutOfBudget(Exception):
    """The search was given up; nobody knows the answer."""


class Budget:
    """How many steps of search are left."""

    __slots__ = ("left",)

    def __init__(self, left: int = 20_000) -> None:
        self.left = left

    def spend(self, steps: int = 1) -> None:
        """Take some; raise :class:`OutOfBudget` when there are none left."""
        self.left -= steps
        if self.left < 0:
            raise OutOfBudget
