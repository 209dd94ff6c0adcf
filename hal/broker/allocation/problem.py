"""One choice among devices of one universe, as sets of bits: what is wanted, what binds it, and the two answers.

A set of devices is an integer, one bit a device. Who asks builds a :class:`Problem` from a node, a rack or all nodes;
:mod:`hal.broker.allocation.solver` answers with an :class:`Assignment`, or with a :class:`Conflict` that is a proof.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

OF_A_DECISION = 5_000
"""Steps of search that one decision may cost beyond a small problem that it began."""
OF_A_COMMAND = 20_000
MOST_WEIGHED = 1024

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


class Exhausted(OutOfBudget):
    """The whole decision has searched enough: what was not looked at is not remembered as hard, and is tried again."""


class Purse:
    """How much search one decision may cost, and all decisions made for one command: nobody else is served meanwhile.

    Counted in steps over few devices (0.1 ms in Python); a step over many costs several.
    """

    __slots__ = ("_depth", "_rest", "left", "used")

    def __init__(self) -> None:
        self.left = OF_A_DECISION
        self.used = False
        self._rest = OF_A_COMMAND
        self._depth = 0

    def begin(self) -> None:
        """Begin a decision, if something was taken out by an earlier one (``used``)."""
        self.left = OF_A_DECISION if not self._depth else min(OF_A_DECISION, self._rest)
        self.used = self.left < OF_A_DECISION

    def take(self, amount: int) -> None:
        """Take some out."""
        self.used = True
        self.left -= amount
        self._rest -= amount

    def __enter__(self) -> None:
        """Begin a command: decisions until the end of it share what there is."""
        if not self._depth:
            self._rest = OF_A_COMMAND
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        """End the command."""
        self._depth -= 1


class Budget:
    """How many steps of search are left for one problem, out of the decision's purse if there is one."""

    __slots__ = ("_always", "_weight", "left", "purse")

    def __init__(self, left: int = 20_000, purse: Purse | None = None) -> None:
        self.left = left
        self.purse = purse
        self._weight = 1
        self._always = False

    def begin(self, devices: int, patience: int = 0) -> None:
        """Say among how many devices is searched; with ``patience`` so many steps are had once they are begun."""
        self._weight = 1 + min(devices, MOST_WEIGHED) // 64
        self.left = max(self.left, patience)
        self._always = bool(patience)
        if self.purse is not None and self.purse.left <= 0:
            raise Exhausted

    def spend(self, steps: int = 1) -> None:
        """Take some; raise :class:`OutOfBudget` when there are none left."""
        self.left -= steps
        if self.left < 0:
            raise OutOfBudget
        purse = self.purse
        if purse is not None:
            purse.take(steps * self._weight)
            if purse.left < 0 and not self._always:
                raise Exhausted
