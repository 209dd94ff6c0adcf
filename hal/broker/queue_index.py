"""Which claims wait, what is kept for them, and when something is due."""

from __future__ import annotations

import heapq
from typing import Any

from hal.broker.accounts import demand_of, group_of
from hal.broker.index import DeviceIndex
from hal.broker.lifecycle import LIVE
from hal.broker.snapshot import Entry
from hal.model.claim import Claim
from hal.model.lease import Lease


class QueueIndex(DeviceIndex):
    """The queue, and a heap of times. ``samples`` holds a waiting claim of each group that is feasible together.

    A waiting claim is either in ``kept`` (devices or a time are kept for it) or in the order of ``fair``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.leases: dict[str, Lease] = {}
        self.claims: dict[str, Claim] = {}
        self.waiting: dict[str, Entry] = {}
        self.kept: dict[str, None] = {}
        self.samples: dict[Any, Claim] = {}
        self._due: list[tuple[float, str]] = []

    def _wait(self, entry: Entry) -> None:
        claim = entry.claim
        self.claims[claim.id] = claim
        self.waiting[claim.id] = entry
        self.openings += 1
        if entry.kept or entry.starts_at is not None:
            self._reserve(entry)
        else:
            self._push(entry)
        if claim.wait_seconds is not None:
            heapq.heappush(self._due, (entry.since + claim.wait_seconds, claim.id))

    def _push(self, entry: Entry) -> None:
        claim = entry.claim
        group = group_of(claim)
        self.samples.setdefault(group, claim)
        self.fair.push(claim.id, claim.tenant, demand_of(claim), group, claim.priority, entry.since)

    def _reserve(self, entry: Entry) -> None:
        self.kept[entry.claim.id] = None
        self._keep(entry.claim.id, entry.kept)
        if entry.starts_at is not None:
            heapq.heappush(self._due, (entry.starts_at, entry.claim.id))

    def _leave_queue(self, claim_id: str) -> None:
        entry = self.waiting.pop(claim_id, None)
        if entry is None:
            return
        if claim_id in self.kept:
            del self.kept[claim_id]
            self._unkeep(claim_id, entry.kept)
        else:
            self.fair.remove(claim_id)

    # --- times

    def _expect(self, lease: Lease) -> None:
        due = self._due
        heapq.heappush(due, (due_at(lease), lease.id))
        if len(due) > 1024 and len(due) > 1024 + 4 * (len(self.leases) + len(self.waiting)):
            self._due = [(due_at(live), live.id) for live in self.leases.values() if live.state in LIVE]
            for entry in self.waiting.values():
                self._due.extend((at, entry.claim.id) for at in entry_times(entry))
            heapq.heapify(self._due)

    def due(self, now: float) -> list[str]:
        """Return the ids of the leases and waiting claims of which something is due by now; they stay due."""
        found: dict[str, None] = {}
        heap = self._due
        while heap and heap[0][0] <= now:
            _, claim_id = heapq.heappop(heap)
            lease, entry = self.leases.get(claim_id), self.waiting.get(claim_id)
            if lease is not None:
                if lease.state in LIVE and due_at(lease) <= now:
                    found[claim_id] = None
            elif entry is not None and any(at <= now for at in entry_times(entry)):
                found[claim_id] = None
        for claim_id in found:
            lease = self.leases.get(claim_id)
            heapq.heappush(heap, (due_at(lease) if lease is not None else now, claim_id))
        return list(found)


def due_at(lease: Lease) -> float:
    """Return when something is due of a live lease: it expires, its time is over, or its holder was to leave."""
    at = lease.expires_at
    if lease.ends_at is not None:
        at = min(at, lease.ends_at)
    return min(at, lease.leave_by) if lease.leave_by else at


def entry_times(entry: Entry) -> list[float]:
    """Return when something is due of a waiting claim: what is kept for it starts, or its patience ends."""
    times = [] if entry.starts_at is None else [entry.starts_at]
    wait = entry.claim.wait_seconds
    return times if wait is None else [*times, entry.since + wait]
