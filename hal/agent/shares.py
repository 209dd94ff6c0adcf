"""Asking a driver for a device that several hold at once: it knows one holder and one fence, and we know all of them.

Shares are prepared in any order: one that was granted later may be the first to be ready. The driver has then seen
the higher fence, and refuses the lower one of the share that is prepared, or shut, after it. What it has seen is ours;
so it is asked again under the highest fence of any share that this journal has given in the device.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from hal.agent.calling import DriverCalls
from hal.broker.ledger import Ledger
from hal.drivers.contract import Grant
from hal.errors import StaleFence
from hal.model.lease import AllocatedDevice


def ask(
    calls: DriverCalls, ledger: Ledger, device: AllocatedDevice, grant: Grant, step: Literal["prepare", "unprepare"]
) -> None:
    """Prepare or unprepare a device, or a share in one; raises what the driver raises.

    ``StaleFence`` means that it has seen a holder of whom this journal knows nothing, or one who has it alone.
    """
    try:
        calls.run(device, step, lambda driver, until: getattr(driver, step)(device.id, grant, until))
    except StaleFence:
        newest = _newest(ledger, device.id) if device.uses else 0
        if newest <= grant.fence:
            raise
        again = msgspec.structs.replace(grant, fence=newest)
        calls.run(device, step, lambda driver, until: getattr(driver, step)(device.id, again, until))


def _newest(ledger: Ledger, device_id: str) -> int:
    """Return the highest fence of the shares in a device, over or not."""
    with ledger.lock:
        state = ledger.state
        leases = [*state.leases.values(), *state.ended.values()]
    return max((x.fence_of(d) for x in leases for d in x.devices if d.id == device_id and d.uses), default=0)
