"""What makes watch look again: one ring a burst, losses counted, silence where there are no events."""

from __future__ import annotations

from hal.cli.probe_bell import Bell
from hal.host.uevents import Loss, Uevent
from hal.interfaces.deadline import Deadline


class Reader:
    """Gives what it was told to, then nothing, without waiting."""

    def __init__(self, *events: Uevent | Loss) -> None:
        self.events = list(events)
        self.losses = 0
        self.closed = False

    def next(self, deadline: Deadline) -> Uevent | Loss | None:
        event = self.events.pop(0) if self.events else None
        self.losses += isinstance(event, Loss)
        return event

    def close(self) -> None:
        self.closed = True


def bell_with(reader: Reader) -> Bell:
    bell = Bell(live=False)
    bell._reader = reader  # type: ignore[assignment]
    return bell


ADDED = Uevent(action="add", devpath="/devices/x")


def test_a_burst_of_events_is_one_ring():
    reader = Reader(*[ADDED] * 1000)
    assert bell_with(reader).wait(60) == 0
    assert reader.events == []


def test_losses_are_counted_since_the_last_ring():
    reader = Reader(ADDED, Loss(count=1), ADDED, Loss(count=2))
    bell = bell_with(reader)
    assert bell.wait(60) == 2
    reader.events = [ADDED]
    assert bell.wait(60) == 0


def test_it_says_what_rings_it_and_stops_listening():
    reader = Reader()
    with bell_with(reader) as bell:
        assert "kernel" in bell.describe()
    assert reader.closed
    assert "not this machine" in Bell(live=False).describe()
