"""Repair of one device: nobody holds it, the driver resets it (or a person vouches for it), and then it must look well.

Latched evidence (:class:`hal.model.health.Condition`) goes by this way only; that the driver stopped reporting it is
no proof that it was mended.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from hal.agent.prepare import Agent
from hal.broker import command as c
from hal.drivers.contract import Driver, Resets, Scrubs
from hal.drivers.guarded import Call, describe
from hal.errors import DeadlineExceeded, DeviceBusy, DeviceError, HalError, HardwareFault, NotReady, Unsupported
from hal.interfaces.deadline import Deadline
from hal.interfaces.operation import Operation
from hal.model.device import Device
from hal.model.health import Action, Condition, Presence

RESET_SECONDS = 120.0
"""How long a reset may take: a DPU boots its own operating system."""
_MENDS = {
    Action.NONE: "hal-probe doctor",
    Action.RESTART_APP: "hal-probe doctor",
    Action.RESET: "hal repair again, or a reboot",
    Action.DRAIN_RESET: "hal repair again, or a reboot",
    Action.REBOOT: "reboot the machine",
    Action.POWER_CYCLE: "power-cycle the machine",
    Action.REPLACE: "replace it",
}


class Repair(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was done: the steps in order, and the evidence that is cleared. ``unfit`` says why it is still kept back."""

    device: str
    name: str
    steps: tuple[str, ...]
    cleared: tuple[Condition, ...] = ()
    unfit: str | None = None


def repair(
    agent: Agent, device: Device, *, scrub: bool = False, by_operator: str | None = None, seconds: float = RESET_SECONDS
) -> tuple[str, ...]:
    """Reset a device through its driver, look at it, and clear its latched evidence if it is well; return the steps.

    ``scrub`` erases it as well. ``by_operator`` is a person's word for what was done; nothing is reset then. Raises
    :class:`~hal.errors.DeviceBusy` while it, or what shares its fate, is held; ``Unsupported`` if its driver can do
    nothing of the kind; ``HardwareFault`` if it is unwell afterwards; and what the driver raises.
    """
    agent.ledger.preview(c.RepairDevice(device=device.id))  # is anything in the way? Then it is not touched
    driver = agent.drivers.get(device.driver)
    steps = [f"vouched for by an operator: {by_operator}"] if by_operator is not None else []
    if by_operator is None and isinstance(driver, Resets):
        _run(device, "reset", driver.reset, seconds)
        steps.append(f"reset by {driver.name}")
    if scrub:
        if not isinstance(driver, Scrubs):
            what = f"{device.driver} cannot scrub it"
            raise Unsupported(what, device=device.id, during="repair", hint="--by-operator REASON")
        _run(device, "scrub", driver.scrub, seconds)
        steps.append(f"scrubbed by {driver.name}")
    if not steps:
        raise _no_way(device, driver)
    _free(agent, device, by_operator)
    left = _look(agent, device, driver, vouched=by_operator is not None)
    agent.ledger.execute(c.RepairDevice(device=device.id, how="; ".join(steps), conditions=tuple(left)))
    return tuple(steps)


def _no_way(device: Device, driver: Driver | None) -> HalError:
    if driver is None:
        return NotReady(
            f"its driver {device.driver} is not here",
            device=device.id,
            during="repair",
            hint="hal-probe doctor; or --by-operator REASON",
        )
    erase = "--scrub erases it; " if isinstance(driver, Scrubs) else ""
    return Unsupported(
        f"{driver.name} cannot reset it", device=device.id, during="repair", hint=f"{erase}--by-operator REASON"
    )


def _run(device: Device, step: str, verb: Callable[..., Operation[None]], seconds: float) -> None:
    """Call a driver's facet under a guard, and wait for its end."""
    deadline = Deadline.after(seconds)
    call = Call(lambda: verb(device.id, deadline=deadline).wait(deadline), f"{step}-{device.id}")
    if not call.join(Deadline.after(seconds + 1.0)):
        raise DeadlineExceeded(
            "the driver did not return; the outcome is unknown", device=device.id, during=step, hint="hal-probe doctor"
        )
    if isinstance(call.error, HalError):
        raise call.error
    if call.error is not None:
        raise DeviceError(
            describe(call.error), device=device.id, during=step, hint="report it to the plugin"
        ) from call.error


def _free(agent: Agent, device: Device, by_operator: str | None) -> None:
    """A fenced device must have let go of its last holder; an operator's recorded order is proof, too."""
    agent.free_fenced(device.id)
    for slot, fenced in list(agent.ledger.state.fenced.items()):
        if fenced.device.id != device.id:
            continue
        if by_operator is None:
            raise DeviceBusy(
                f"it does not let go of lease {fenced.lease}",
                device=device.id,
                during="repair",
                hint="reboot; or --by-operator REASON, which gives it on",
            )
        proof = f"order of an operator: {by_operator}"
        agent.ledger.execute(c.ProveFreed(device=slot, fence=fenced.fence, proof=proof))


def _look(agent: Agent, device: Device, driver: Driver | None, vouched: bool) -> list[Condition]:
    """Return the conditions that hold now; raise if they keep the device from being handed out."""
    if device.presence is Presence.MISSING and vouched:
        return []  # it is not there to be asked, and stays missing; what was remembered of it may go
    if driver is None:
        raise _no_way(device, driver)
    seen = agent.look(driver, device.id)
    bad = next((condition for condition in seen if condition.blocks_new_leases), None)
    if bad is not None:
        agent.sample([device])
        raise HardwareFault(
            f"it is still unwell: {bad.type} ({bad.severity.value}): {bad.evidence}",
            device=device.id,
            during="repair",
            hint=_MENDS[bad.action],
            code=bad.code,
        )
    return seen
