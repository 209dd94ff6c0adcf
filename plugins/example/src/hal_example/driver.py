"""The driver: what ``hal.drivers.contract.Driver`` asks for, and the facet ``Scrubs``."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hal.drivers.contract import READY, Cause, Discovery, Grant, HostRoot, Readiness
from hal.drivers.guard import Guard
from hal.errors import AccessDenied, DeviceGone, DeviceNotFound, StaleFence
from hal.interfaces.deadline import Deadline, or_default
from hal.interfaces.operation import Operation
from hal.model.health import Condition
from hal_example.cards import CLASS, DRIVER, Card, describe, find_cards
from hal_example.handle import AcmeMemory

_ZEROS = bytes(1 << 20)


class ExampleDriver:
    """Drives ACME cards. It inherits nothing: having the verbs is enough."""

    name = DRIVER

    def __init__(self, hosts: Sequence[HostRoot]) -> None:
        self._hosts = tuple(hosts)

    def readiness(self) -> Readiness:
        """Say whether there is a card, or what is in the way."""
        for host in self._hosts:
            if find_cards(host)[0]:
                return READY
        if any(host.path("sys", CLASS).is_dir() for host in self._hosts):
            return Readiness(cause=Cause.NO_HARDWARE, detail="no card in /sys/class/acme", remedy="plug a card in")
        return Readiness(cause=Cause.NO_DRIVER, detail="there is no /sys/class/acme", remedy="modprobe acme")

    def discover(self, deadline: Deadline) -> Discovery:
        """Return all cards of all machines."""
        now = time.time()
        found = [find_cards(host) for host in self._hosts]
        return Discovery(
            devices=tuple(describe(card, now) for cards, _ in found for card in cards),
            problems=tuple(problem for _, problems in found for problem in problems),
        )

    def sample(self, device_ids: Sequence[str], deadline: Deadline) -> Sequence[Condition]:
        """Return the conditions that hold on the cards now."""
        now = time.time()
        return [found for device_id in device_ids for found in describe(self._find(device_id), now).conditions]

    def prepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Remember the fence; a card needs nothing else."""
        card = self._find(device_id)
        self._memory(card, "prepare")
        self._raise_fence(card, grant, "prepare")

    def unprepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Remember the fence: handles of an older one have died by their guard."""
        card = self._find(device_id)
        if card.memory is not None and os.path.exists(card.memory):  # a card that is gone is let go all the same
            self._raise_fence(card, grant, "unprepare")

    def open(self, device_id: str, guard: Guard, deadline: Deadline) -> AcmeMemory:
        """Open a card in this process."""
        card = self._find(device_id)
        memory = self._memory(card, "open")
        return AcmeMemory(card, memory, describe(card, time.time()), guard, lambda: self._find(device_id))

    def close(self) -> None:
        """Nothing is held."""

    def scrub(self, device_id: str, *, deadline: Deadline | None = None) -> Operation[None]:
        """Overwrite the whole memory with zeros."""
        card = self._find(device_id)
        memory = self._memory(card, "scrub")
        limit = or_default(deadline, 600.0)

        def work(operation: Operation[None]) -> None:
            with open(memory, "r+b", buffering=0) as file:
                left = card.size_bytes
                while left:
                    limit.check(device=card.id, during="scrub")
                    left -= file.write(_ZEROS[:left])
                    operation.report(1.0 - left / card.size_bytes)
                os.fsync(file.fileno())

        return Operation.spawn(card.id, "scrub", work)

    def _find(self, device_id: str) -> Card:
        for host in self._hosts:
            for card in find_cards(host)[0]:
                if card.id == device_id:
                    return card
        raise DeviceNotFound("no ACME card of that id", device=device_id, during="find", hint="hal-probe list")

    def _memory(self, card: Card, step: str) -> str:
        if card.memory is None or not os.path.exists(card.memory):
            raise DeviceGone("the card shows no memory", device=card.id, during=step, hint="reseat or replace the card")
        return card.memory

    def _raise_fence(self, card: Card, grant: Grant, step: str) -> None:
        # The card has no register for it, so the fence is kept beside its memory, where it outlives this process.
        with _locked(f"{card.memory}.fence", card, step) as descriptor:
            seen = int(os.pread(descriptor, 32, 0) or b"0")
            if grant.fence < seen:
                raise StaleFence(
                    f"fence {grant.fence} is older than {seen}, which the card has seen",
                    device=card.id,
                    during=step,
                    hint="the lease was given to somebody else; claim again",
                )
            os.pwrite(descriptor, f"{grant.fence:020}".encode(), 0)
            os.fsync(descriptor)


@contextmanager
def _locked(path: str, card: Card, step: str) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except PermissionError as error:
        raise AccessDenied(
            f"cannot write {path}: {error.strerror}", device=card.id, during=step, hint="run the agent as root"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
