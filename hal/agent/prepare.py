"""The node's side of a lease: devices are prepared after the commit, and taken back before they are called free.

The order is the whole point. Granting: journal, driver, guard page. Taking back: journal, guard page, driver, journal:
first the end is decided, then every handle dies, then the driver shuts the device, and only that is proof.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from hal.broker import command as c
from hal.broker.core import AGENT
from hal.broker.ledger import Ledger
from hal.broker.record import checked
from hal.drivers.contract import Driver, Grant
from hal.drivers.guard import FOREVER_NS, GuardPages
from hal.drivers.guarded import Call, describe
from hal.errors import DeadlineExceeded, DeviceError, HalError, NotReady, StaleFence
from hal.interfaces.deadline import Deadline
from hal.model.device import Device
from hal.model.health import Condition, Severity, Status
from hal.model.lease import AllocatedDevice, Lease, LeaseState

_LOG = logging.getLogger(__name__)
HELD_BACK_SECONDS = 60.0
"""How long a device that could not be prepared is kept from new leases, unless its driver says worse."""
ASK_AGAIN_SECONDS = 5.0
"""How long a device is kept from new leases that could not be asked how it is."""


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """A device that could not be prepared, and why."""

    device: AllocatedDevice
    error: str


class Agent:
    """Prepares and unprepares the devices of leases through their drivers, and tells the ledger what is proven."""

    def __init__(
        self, ledger: Ledger, drivers: Mapping[str, Driver], pages: GuardPages, deadline_seconds: float = 10.0
    ) -> None:
        self.ledger = ledger
        self.drivers = drivers
        self.pages = pages
        self.deadline_seconds = deadline_seconds
        self.patience_seconds = 1.0
        self._returned: set[str] = set()
        self._calls: dict[str, Call[None]] = {}

    # --- granting

    def prepare(self, lease: Lease, fresh: bool = False) -> Lease | Trouble:
        """Prepare every device of a bound lease and open its guard pages; return the lease as it is then.

        ``fresh``: the lease was committed a moment ago and by this process, so no device of it was touched before.
        If one fails, all are taken back, the claim is returned as if it had not been made, and the device is kept from
        new leases for a while.
        """
        grant = _grant(lease)
        for number, device in enumerate(lease.devices):
            try:
                self._cut_off_strangers(device, lease)
                self._call(device, "prepare", grant)
                self.pages.grant(device.id, lease.fence, self._expiry_ns(lease))
            except (HalError, OSError) as error:
                why = error.message if isinstance(error, HalError) else str(error)
                _LOG.info("%s could not be prepared for lease %s: %s", device.id, lease.id, error)
                self._keep_back(device, why)
                untouched = lease.devices[number + 1 :] if fresh else ()
                self.give_up(lease, f"{device.name} could not be prepared: {why}", untouched)
                return Trouble(device=device, error=why)
        answer = self.ledger.execute(c.MarkPrepared(lease=lease.id, fence=lease.fence))
        assert isinstance(answer, c.Done)
        assert answer.lease is not None
        return answer.lease

    def _cut_off_strangers(self, device: AllocatedDevice, lease: Lease) -> None:
        """End the handles of a holder whom a lost journal no longer knows, before anybody else is let in."""
        fence = self.pages.fence(device.id)
        if fence not in (0, lease.fence):
            _LOG.warning("%s was open under fence %d, which the journal does not know", device.id, fence)
            self.pages.revoke(device.id, fence)

    def give_up(self, lease: Lease, why: str, untouched: Iterable[AllocatedDevice] = ()) -> None:
        """Take back a lease that was never acknowledged; ``untouched`` devices were never prepared for it."""
        self.ledger.execute(c.Release(lease=lease.id, why=why))
        self.take_back(lease, returned=True, untouched=untouched)

    def renew_pages(self, lease: Lease) -> None:
        """Let the holder's handles live as long as the lease now does, if they may live at all."""
        if lease.state is not LeaseState.PREPARED:
            return
        for device in lease.devices:
            try:
                self.pages.grant(device.id, lease.fence, self._expiry_ns(lease))
            except OSError as error:
                raise DeviceError(
                    f"lease {lease.id} is renewed, but its handles do not learn of it: {error}",
                    device=device.id,
                    during="renew",
                    hint=f"look at the disk of {self.pages.folder}, and renew again",
                ) from error

    # --- taking back

    def take_back(self, lease: Lease, returned: bool = False, untouched: Iterable[AllocatedDevice] = ()) -> None:
        """End every handle, shut every device, and say which of them are proven to be free."""
        if returned:
            self._returned.add(lease.id)
        fenced: dict[str, str] = {}
        left_alone = {device.id for device in untouched}
        for device in lease.devices:
            why = self._close_page(device.id, lease.fence)
            if why is not None:
                fenced[device.id] = why
        for device in lease.devices:
            why = None if device.id in left_alone else self._shut(device, _grant(lease))
            if why is not None:
                fenced[device.id] = why
        self.ledger.execute(c.ProveReleased(lease=lease.id, fence=lease.fence, fenced=fenced, returned=returned))
        self._returned.discard(lease.id)

    def _close_page(self, device_id: str, fence: int) -> str | None:
        """End every handle of one holder; return why that could not be done."""
        try:
            self.pages.revoke(device_id, fence)
        except OSError as error:
            return f"its guard page cannot be cleared: {error}"
        return None

    def _shut(self, device: AllocatedDevice, grant: Grant) -> str | None:
        """Unprepare one device; return why that is not proven."""
        try:
            self._call(device, "unprepare", grant)
        except StaleFence:
            return None  # the device knows a later holder, so this one has lost it
        except HalError as error:
            _LOG.info("%s stays fenced after lease %s: %s", device.id, grant.lease, error)
            return error.message
        return None

    def expire(self) -> tuple[Lease, ...]:
        """Take back what has expired, and what a failing journal kept from being taken back; return the expired."""
        answer = self.ledger.execute(c.Expire())
        assert isinstance(answer, c.Done)
        for lease_id in list(self.ledger.state.ending):
            self.take_back(self.ledger.state.leases[lease_id], lease_id in self._returned)
        return answer.leases

    def reconcile(self) -> None:
        """Make the devices agree with the journal after a crash, a reboot, or a driver that was away."""
        self.expire()
        for lease in list(self.ledger.state.leases.values()):
            if lease.expires_at > self.ledger.clock.now():
                if lease.state is LeaseState.BOUND:
                    self.prepare(lease)
                else:
                    self.renew_pages(lease)
        self.free_fenced()

    def free_fenced(self, only: str | None = None) -> None:
        """Try again to shut the devices whose last holder is not proven to have let go; all, or one."""
        for device_id, fenced in list(self.ledger.state.fenced.items()):
            if only not in (None, device_id):
                continue
            grant = Grant(lease=fenced.lease, fence=fenced.fence, tenant=fenced.tenant)
            closed = self._close_page(device_id, fenced.fence) is None
            if closed and self._shut(fenced.device, grant) is None:
                self.ledger.execute(c.ProveFreed(device=device_id, fence=fenced.fence))

    # --- health

    def sample(self, devices: Iterable[Device]) -> bool:
        """Ask the drivers how the devices are now and write down what is new; True if a device became unfit."""
        by_driver: dict[str, list[Device]] = {}
        changed: list[Device] = []
        for device in devices:
            if device.driver in self.drivers:
                by_driver.setdefault(device.driver, []).append(device)
            elif device.allocatable:
                gone = self._condition(device.id, "NoDriver", f"{device.driver} is not here", Status.UNKNOWN)
                left = [condition for condition in device.conditions if condition.type != gone.type]
                changed.append(msgspec.structs.replace(device, conditions=(*left, gone)))
        for name, group in by_driver.items():
            seen = self._sample(self.drivers[name], [device.id for device in group])
            for device in group:
                fresh = [condition for condition in seen if condition.device == device.id]
                types = {condition.type for condition in fresh}
                kept = [condition for condition in device.conditions if condition.type not in types]
                changed.append(msgspec.structs.replace(device, conditions=(*kept, *fresh)))
        self.ledger.execute(c.Observe(devices=tuple(changed)))
        return any(condition.blocks_new_leases for device in changed for condition in device.conditions)

    def look(self, driver: Driver, device_id: str) -> list[Condition]:
        """Ask a driver how one device is now; no answer is a condition of status unknown."""
        return self._sample(driver, [device_id])

    def _sample(self, driver: Driver, device_ids: list[str]) -> list[Condition]:
        deadline = self._deadline()
        call = Call(lambda: _conditions(driver, device_ids, deadline), f"sample-{driver.name}")
        if call.join(deadline) and call.value is not None:
            return call.value
        detail = describe(call.error) if call.error is not None else "no answer in time"
        if len(device_ids) > 1:  # one broken device must not speak for the others
            return [found for device_id in device_ids for found in self._sample(driver, [device_id])]
        return [self._condition(device_id, "SampleFailed", detail, Status.UNKNOWN) for device_id in device_ids]

    def _keep_back(self, device: AllocatedDevice, evidence: str) -> None:
        known = self.ledger.state.devices.get(device.id)
        if known is not None:
            left = tuple(found for found in known.conditions if found.type != "PrepareFailed")
            found = self._condition(device.id, "PrepareFailed", evidence, Status.TRUE)
            self.ledger.execute(c.Observe(devices=(msgspec.structs.replace(known, conditions=(*left, found)),)))

    def _condition(self, device_id: str, type_: str, evidence: str, status: Status) -> Condition:
        now = self.ledger.clock.now()
        seconds = HELD_BACK_SECONDS if status is Status.TRUE else ASK_AGAIN_SECONDS
        return Condition(
            device=device_id,
            type=type_,
            severity=Severity.CRITICAL,
            status=status,
            evidence=evidence,
            source=AGENT,
            first_seen_at=now,
            last_seen_at=now,
            expires_at=now + seconds,
        )

    # --- calls

    def _deadline(self) -> Deadline:
        return Deadline.after(self.deadline_seconds)

    def _call(self, device: AllocatedDevice, step: Literal["prepare", "unprepare"], grant: Grant) -> None:
        """Call a driver under a guard: what it raises is an error of the device, and it cannot hang the broker."""
        driver = self.drivers.get(device.driver)
        if driver is None:
            raise NotReady(
                f"its driver {device.driver} is not here", device=device.id, during=step, hint="hal-probe doctor"
            )
        verb = driver.prepare if step == "prepare" else driver.unprepare
        earlier = self._calls.get(device.id)
        if earlier is not None and not earlier.finished:
            raise DeadlineExceeded(
                "an earlier call has not returned yet; nobody knows what it will still do",
                device=device.id,
                during=step,
                hint="hal repair, or wait for it",
            )
        deadline = self._deadline()
        call = self._calls[device.id] = Call(lambda: verb(device.id, grant, deadline), f"{step}-{device.id}")
        # A little longer than the driver's own deadline, so that a driver that keeps it can say what happened.
        if not call.join(Deadline.after(self.deadline_seconds + self.patience_seconds)):
            raise DeadlineExceeded(
                "the driver did not return; the outcome is unknown",
                device=device.id,
                during=step,
                hint="hal-probe doctor",
            )
        del self._calls[device.id]
        if isinstance(call.error, HalError):
            raise call.error
        if call.error is not None:
            raise DeviceError(
                describe(call.error), device=device.id, during=step, hint="report it to the plugin"
            ) from (call.error)

    def _expiry_ns(self, lease: Lease) -> int:
        left = lease.expires_at - self.ledger.clock.now()
        return min(FOREVER_NS, max(0, time.clock_gettime_ns(time.CLOCK_BOOTTIME) + int(left * 1e9)))


def _conditions(driver: Driver, device_ids: list[str], deadline: Deadline) -> list[Condition]:
    """Ask a driver; what is no condition, or none that the journal could read again, is an error of the driver."""
    return [checked(condition, Condition) for condition in driver.sample(device_ids, deadline)]


def _grant(lease: Lease) -> Grant:
    return Grant(lease=lease.id, fence=lease.fence, tenant=lease.tenant)
