"""The node's side of a lease: devices are prepared after the commit, and taken back before they are called free.

The order is the whole point. Granting: journal, driver, guard page. Taking back: journal, guard page, driver, journal:
first the end is decided, then every handle dies, then the driver shuts the device, and only that is proof.

What a fence speaks of is a *slot* (:meth:`~hal.model.lease.Lease.slot_of`), and each slot has a guard page:

* a device held alone: the driver prepares and unprepares it for its holder;
* a part that is made of a device: it is made and prepared, unprepared and destroyed; the page is the slot's;
* a share in a device: a page for each holder, and the driver prepares the device when the first comes and shuts it
  when the last goes. What ends one share while others stay is its guard page alone: no vendor can take a device back
  from one process and leave it to another.

What must not happen at once is kept apart here, so that nobody needs a lock around it: the driver is asked one thing at
a time for each device, and a page is written only while the ledger says that its lease lives (or does not). The
ledger's lock is never held while a driver works.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterable, Mapping

import msgspec

from hal.agent import partition, shares
from hal.agent.calling import Begin, DriverCalls
from hal.agent.ordering import Turns
from hal.agent.sampling import Sampling
from hal.broker import command as c
from hal.broker.decisions.leases import newest_fence
from hal.broker.ledger import Ledger
from hal.broker.lifecycle import LIVE
from hal.drivers.contract import Driver, Grant
from hal.drivers.guard import FOREVER_NS, GuardPages
from hal.drivers.guarded import Call
from hal.errors import DeviceError, HalError, LeaseEnded, StaleFence
from hal.interfaces.deadline import Deadline
from hal.model.device import Device
from hal.model.health import Condition
from hal.model.lease import AllocatedDevice, Lease, LeaseState

_LOG = logging.getLogger(__name__)


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """A device that could not be prepared, and why."""

    device: AllocatedDevice
    error: str


class Agent:
    """Prepares and unprepares the devices of leases through their drivers, and tells the ledger what is proven.

    Thread-safe; every method may be called without a lock, and none may be called under the ledger's.
    """

    def __init__(
        self,
        ledger: Ledger,
        drivers: Mapping[str, Driver],
        pages: GuardPages,
        deadline_seconds: float = 10.0,
        begin: Begin = Call,
    ) -> None:
        self.ledger = ledger
        self.pages = pages
        self.calls = DriverCalls(drivers, deadline_seconds, begin)
        self.sampling = Sampling(ledger, self.calls)
        self._turns = Turns()
        self._writing = threading.Lock()
        self._returned: set[str] = set()

    @property
    def drivers(self) -> Mapping[str, Driver]:
        """The drivers by name."""
        return self.calls.drivers

    @property
    def deadline_seconds(self) -> float:
        """How long a driver has for one verb."""
        return self.calls.deadline_seconds

    @property
    def patience_seconds(self) -> float:
        """How much longer it is waited for its answer."""
        return self.calls.patience_seconds

    @patience_seconds.setter
    def patience_seconds(self, seconds: float) -> None:
        self.calls.patience_seconds = seconds

    # --- granting

    def prepare(self, lease: Lease, fresh: bool = False) -> Lease | Trouble:
        """Prepare every device of a bound lease and open its guard pages; return the lease as it is then.

        ``fresh``: the lease was committed a moment ago and by this process, so no device of it was touched before. If
        one fails, what is new is taken back: the whole claim as if it had not been made, or of one that has grown the
        new replicas alone; and the device is kept from new leases for a while. A lease that is ended meanwhile is
        ``Trouble``, too, and whoever ended it takes it back.
        """
        opened_as: dict[str, str] = {}
        newest = newest_fence(lease)
        # A lease grows when it is prepared: what it has under an older fence was promised, and may be in use.
        promised = {device.slot for device in lease.devices if lease.fence_of(device) != newest}
        for number, device in enumerate(lease.devices):
            try:
                with self._turns.of(device.id):
                    part = self._prepare(lease, device)
                if part is not None:
                    opened_as[device.slot] = part
            except LeaseEnded as error:
                return Trouble(device=device, error=error.message)
            except (HalError, OSError) as error:
                why = error.message if isinstance(error, HalError) else str(error)
                _LOG.info("%s could not be prepared for lease %s: %s", device.id, lease.id, error)
                if device.slot in promised:
                    continue  # it was prepared before, and whatever became of it is its holder's to see
                self.sampling.keep_back(device.id, why)
                said = f"{device.name} could not be prepared: {why}"
                if promised:
                    shrunk = self._shrink(lease, newest, said)
                    return Trouble(device=device, error=why) if shrunk is None else shrunk
                self.give_up(lease, said, lease.devices[number + 1 :] if fresh else ())
                return Trouble(device=device, error=why)
        try:
            return self._mark(lease, opened_as)
        except (LeaseEnded, StaleFence) as error:  # it was ended, or has grown again, in the meantime
            return Trouble(device=lease.devices[0], error=error.message)

    def _mark(self, lease: Lease, opened_as: dict[str, str]) -> Lease:
        command = c.MarkPrepared(lease=lease.id, fence=newest_fence(lease), opened_as=opened_as)
        answer = self.ledger.execute(command)
        assert isinstance(answer, c.Done)
        assert answer.lease is not None
        return answer.lease

    def _prepare(self, lease: Lease, device: AllocatedDevice) -> str | None:
        """Prepare one device in its turn and open its page; return the id of the part that was made for it."""
        slot, fence = lease.slot_of(device), lease.fence_of(device)
        self._cut_off_strangers(slot, fence)
        self._check_live(lease, device)
        grant = _grant(lease, device)
        part: str | None = None
        if device.partition:

            def make(driver: Driver, deadline: Deadline) -> str:
                made = partition.make(driver, device, deadline)
                driver.prepare(made.id, grant, deadline)
                return made.id

            part = self.calls.run(device, "prepare", make)
        elif not self._shared_with_others(lease.id, device):
            shares.ask(self.calls, self.ledger, device, grant, "prepare")
        with self._writing:
            now = self._check_live(lease, device)
            self.pages.grant(slot, fence, self._expiry_ns(now, device))
        return part

    def _check_live(self, lease: Lease, device: AllocatedDevice) -> Lease:
        """Return the lease as it is, if it lives and has the device. Whoever ends it says so before they take it back,
        so what is prepared while it lives is taken back afterwards, and what would be prepared later is not.
        """
        now = self.ledger.state.leases.get(lease.id)
        if now is not None and now.state in LIVE:
            fence = lease.fence_of(device)
            if any(held.slot == device.slot and now.fence_of(held) == fence for held in now.devices):
                return now
        raise LeaseEnded(
            f"lease {lease.id} was ended while it was being prepared",
            device=device.id,
            during="prepare",
            hint="hal list",
        )

    def _cut_off_strangers(self, slot: str, expected: int) -> None:
        """End the handles of a holder whom a lost journal no longer knows, before anybody else is let in."""
        fence = self.pages.fence(slot)
        if fence not in (0, expected):
            _LOG.warning("%s was open under fence %d, which the journal does not know", slot, fence)
            self.pages.revoke(slot, fence)

    def _shared_with_others(self, lease_id: str, device: AllocatedDevice) -> bool:
        """Return whether somebody else has an open share of the device: then the driver need not be asked."""
        if not device.uses:
            return False
        with self.ledger.lock:
            state = self.ledger.state
            others = [state.leases[name] for name in state.holders_of(device.id) if name in state.leases]
        return any(
            self._is_open(other, held)
            for other in others
            if other.id != lease_id
            for held in other.devices
            if held.id == device.id and held.uses
        )

    def _is_open(self, lease: Lease, device: AllocatedDevice) -> bool:
        return self.pages.fence(lease.slot_of(device)) == lease.fence_of(device)

    def _shrink(self, lease: Lease, newest: int, why: str) -> Lease | None:
        """Take back the replicas that a lease grew by, and leave it the others; None if it has ended meanwhile."""
        _LOG.info("lease %s stays as it was: %s", lease.id, why)
        new = tuple(sorted({device.replica for device in lease.devices if lease.fence_of(device) == newest}))
        try:
            answer = self.ledger.execute(c.Resize(lease=lease.id, replicas=lease.replicas - len(new), leaving=new))
            assert isinstance(answer, c.Done)
            assert answer.lease is not None
            self.take_back(answer.lease, replicas=answer.lease.leaving)
            now = self.ledger.state.leases.get(lease.id)
            return None if now is None else self._mark(now, {})
        except (LeaseEnded, StaleFence):
            return None

    def give_up(self, lease: Lease, why: str, untouched: Iterable[AllocatedDevice] = ()) -> None:
        """Take back a lease that was never acknowledged; ``untouched`` devices were never prepared for it."""
        self.ledger.execute(c.Release(lease=lease.id, why=why))
        self.take_back(lease, returned=True, untouched=untouched)

    def renew_pages(self, lease: Lease) -> None:
        """Let the holder's handles live as long as the lease now does, if they may live at all.

        Of a lease that is prepared, each page is there or made again; of another, those that are open go on.
        """
        for device in lease.devices:
            try:
                with self._writing:
                    now = self.ledger.state.leases.get(lease.id)
                    if now is None or now.state not in LIVE:
                        return
                    if now.state is LeaseState.PREPARED or self._is_open(now, device):
                        slot = now.slot_of(device)
                        self.pages.grant(slot, now.fence_of(device), self._expiry_ns(now, device))
            except OSError as error:
                raise DeviceError(
                    f"lease {lease.id} is renewed, but its handles do not learn of it: {error}",
                    device=device.id,
                    during="renew",
                    hint=f"look at the disk of {self.pages.folder}, and renew again",
                ) from error

    # --- taking back

    def take_back(
        self,
        lease: Lease,
        returned: bool = False,
        untouched: Iterable[AllocatedDevice] = (),
        replicas: Collection[int] | None = None,
    ) -> None:
        """End every handle, shut every device, and say which of them are proven to be free.

        ``replicas``: only those of a lease that shrinks. The ledger has ended the lease, or told the replicas to leave,
        before. One thread takes back a lease at a time; the next finds it done.
        """
        if returned:
            self._returned.add(lease.id)
        with self._turns.of(f"lease {lease.id}"):
            now = self.ledger.state.leases.get(lease.id)
            if now is None or now.fence != lease.fence:
                return
            leaving = [d for d in now.devices if replicas is None or d.replica in replicas]
            fenced = self._shut_all(now, leaving, {device.slot for device in untouched})
            if replicas is None:
                self.ledger.execute(c.ProveReleased(lease=now.id, fence=now.fence, fenced=fenced, returned=returned))
                self._returned.discard(now.id)
            elif leaving:
                gone = tuple(sorted({device.replica for device in leaving}))
                newest = max(now.fence_of(device) for device in leaving)
                self.ledger.execute(c.ProveShrunk(lease=now.id, replicas=gone, fence=newest, fenced=fenced))

    def _shut_all(self, lease: Lease, devices: list[AllocatedDevice], left_alone: set[str]) -> dict[str, str]:
        """Close the pages, then shut the devices; return, by slot, why one is not proven to be let go."""
        fenced: dict[str, str] = {}
        for device in devices:
            why = self._close_page(lease.slot_of(device), lease.fence_of(device))
            if why is not None:
                fenced[lease.slot_of(device)] = why
        for device in devices:
            why = (
                None if device.slot in left_alone else self._shut(device, _grant(lease, device), lease.slot_of(device))
            )
            if why is not None:
                fenced[lease.slot_of(device)] = why
        return fenced

    def _close_page(self, slot: str, fence: int) -> str | None:
        """End every handle of one holder; return why that could not be done."""
        try:
            with self._writing:
                self.pages.revoke(slot, fence)
        except OSError as error:
            return f"its guard page cannot be cleared: {error}"
        return None

    def _shut(self, device: AllocatedDevice, grant: Grant, slot: str) -> str | None:
        """Unprepare one device in its turn; return why that is not proven."""
        try:
            with self._turns.of(device.id):
                if device.partition:
                    if self.pages.fence(slot) not in (0, grant.fence):
                        return None  # the same part was made again for a later holder: this one has lost it
                    self.calls.run(device, "unprepare", lambda driver, until: _unmake(driver, device, grant, until))
                elif not self._shared_with_others(grant.lease, device):
                    shares.ask(self.calls, self.ledger, device, grant, "unprepare")
        except StaleFence:
            return None  # the device knows a later holder, so this one has lost it
        except HalError as error:
            _LOG.info("%s stays fenced after lease %s: %s", slot, grant.lease, error)
            return error.message
        return None

    def expire(self) -> tuple[Lease, ...]:
        """Take back what has expired or is to be gone by now, and what a failing journal kept from being taken back.

        Returns the leases that the clock has ended. To a lease whose holder was told to leave and has time left,
        nothing is done.
        """
        answer = self.ledger.execute(c.Expire())
        assert isinstance(answer, c.Done)
        with self.ledger.lock:
            state = self.ledger.state
            over = [state.leases[name] for name in state.ending]
            shrinking = [state.leases[name] for name in state.shrinking]
        for lease in over:
            self.take_back(lease, lease.id in self._returned)
        now = self.ledger.clock.now()
        for lease in shrinking:
            if lease.leaving and lease.leave_by <= now and lease.state in LIVE:
                self.take_back(lease, replicas=lease.leaving)
        return answer.leases

    def reconcile(self) -> None:
        """Make the devices agree with the journal after a crash, a reboot, or a driver that was away."""
        self.expire()
        with self.ledger.lock:
            leases = list(self.ledger.state.leases.values())
        for lease in leases:
            if lease.expires_at > self.ledger.clock.now():
                if lease.state is LeaseState.BOUND:
                    self.prepare(lease)
                else:
                    self.renew_pages(lease)
        self.free_fenced()

    def free_fenced(self, only: str | None = None) -> None:
        """Try again to shut what its last holder is not proven to have let go; all, or one device's (or slot's)."""
        with self.ledger.lock:
            found = list(self.ledger.state.fenced.items())
        for slot, fenced in found:
            if only not in (None, slot, fenced.device.id):
                continue
            grant = Grant(lease=fenced.lease, fence=fenced.fence, tenant=fenced.tenant)
            closed = self._close_page(slot, fenced.fence) is None
            if closed and self._shut(fenced.device, grant, slot) is None:
                self.ledger.execute(c.ProveFreed(device=slot, fence=fenced.fence))

    # --- health

    def sample(self, devices: Iterable[Device]) -> bool:
        """Ask the drivers how the devices are now and write down what is new; True if a device became unfit."""
        return self.sampling.sample(devices)

    def look(self, driver: Driver, device_id: str) -> list[Condition]:
        """Ask a driver how one device is now; no answer is a condition of status unknown."""
        return self.sampling.look(driver, [device_id])

    def _expiry_ns(self, lease: Lease, device: AllocatedDevice) -> int:
        """Return when the page of a device ends by itself, should nobody be there to end it."""
        until = lease.expires_at
        if lease.state is LeaseState.DRAINING or device.replica in lease.leaving:
            until = min(until, lease.leave_by)
        left = until - self.ledger.clock.now()
        return min(FOREVER_NS, max(0, time.clock_gettime_ns(time.CLOCK_BOOTTIME) + int(left * 1e9)))


def _unmake(driver: Driver, device: AllocatedDevice, grant: Grant, deadline: Deadline) -> None:
    part = partition.find(driver, device, deadline)
    if part is not None:
        driver.unprepare(part.id, grant, deadline)
        partition.unmake(driver, device, part, deadline)


def _grant(lease: Lease, device: AllocatedDevice) -> Grant:
    return Grant(lease=lease.id, fence=lease.fence_of(device), tenant=lease.tenant)
