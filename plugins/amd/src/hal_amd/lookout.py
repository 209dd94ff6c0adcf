"""Asking GPUs in threads that can be left behind: a driver that resets its GPU lets whoever reads a file wait.

A GPU that did not answer keeps its one thread and is not asked again until that has returned. The others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from hal.drivers.contract import HostRoot
from hal.drivers.guarded import Call
from hal.errors import DeadlineExceeded
from hal.host.tree import HostTree
from hal.interfaces.deadline import Deadline
from hal_amd.cards import Card
from hal_amd.reading import Reading, read

T = TypeVar("T")
Look = Callable[[HostTree, Card], Reading]
_SHARE = 0.25
_LEAST_SECONDS, _MOST_SECONDS = 1.0, 5.0


def look_at(machine: HostTree, card: Card) -> Reading:
    """Look at one GPU of a machine."""
    return read(machine.sys, card)


class Lookout:
    """Remembers who does not answer."""

    def __init__(self, look: Look = look_at) -> None:
        self._look = look
        self._stuck: dict[tuple[str, str], Call[object]] = {}

    def look(self, host: HostRoot, cards: Sequence[Card], deadline: Deadline) -> dict[str, Reading | None]:
        """Look at several GPUs at once; None for one that did not answer in time."""
        calls = {card.id: self._start(host, card, self._look) for card in cards}
        left = deadline.remaining_seconds
        patience = Deadline.after(min(left, max(_LEAST_SECONDS, min(left * _SHARE, _MOST_SECONDS))))
        found: dict[str, Reading | None] = {}
        for card in cards:
            call = calls[card.id]
            found[card.id] = None
            if call is None:
                continue
            if not call.join(patience):
                self._stuck[host.node, card.address] = call
            elif call.error is not None:
                raise call.error
            else:
                assert isinstance(call.value, Reading)
                found[card.id] = call.value
        return found

    def ask(
        self, host: HostRoot, card: Card, device_id: str, step: str, work: Callable[[HostTree], T], deadline: Deadline
    ) -> T:
        """Do something with one GPU within the deadline. Raises ``DeadlineExceeded`` for one that does not answer."""
        call = self._start(host, card, lambda machine, _: work(machine))
        if call is None or not call.join(deadline):
            if call is not None:
                self._stuck[host.node, card.address] = call
            raise DeadlineExceeded(
                "the kernel did not answer: the GPU has hung, or is being reset",
                device=device_id,
                during=step,
                hint="look at dmesg; ask again when the reset has ended",
            )
        if call.error is not None:
            raise call.error
        return call.value  # type: ignore[return-value]  # what work returned

    def _start(self, host: HostRoot, card: Card, work: Callable[[HostTree, Card], object]) -> Call[object] | None:
        """Start a call in a thread with a tree of its own; None while an earlier one has not returned."""
        before = self._stuck.get((host.node, card.address))
        if before is not None:
            if not before.finished:
                return None
            del self._stuck[host.node, card.address]

        def run() -> object:
            with HostTree(host.root) as machine:
                return work(machine, card)

        return Call(run, f"amd-{card.address}")
