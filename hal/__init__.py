"""hal: one way to find, lease, open and mend the accelerators of a data center.

    >>> import hal
    >>> found = hal.survey()                      # one look at this machine
    >>> gpus = found.inventory.of_kind(hal.Kind.GPU)

Names are imported when they are first used, so that ``import hal`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hal.agent.survey import Survey, survey
    from hal.api.ask import pairs
    from hal.api.client import Client
    from hal.api.connect import connect
    from hal.api.held import HeldLease, open_lease
    from hal.api.keep import Keeping
    from hal.api.local import LocalBroker
    from hal.api.opening import open_broker
    from hal.api.surface import Broker
    from hal.broker.command import Granted, Queued, Refused, Undecided
    from hal.errors import HalError
    from hal.interfaces.deadline import Deadline
    from hal.interfaces.operation import Operation
    from hal.model.attributes import Absence, Attribute
    from hal.model.claim import Claim, Constraint, Gang, Gather, Locality, Preempt, Request, Share
    from hal.model.device import Device, Link, Location
    from hal.model.health import Condition, Health, Severity
    from hal.model.inventory import Inventory
    from hal.model.kind import Kind
    from hal.model.lease import Lease
    from hal.model.tenant import Tenant

_HOMES = {
    "Absence": "hal.model.attributes",
    "Attribute": "hal.model.attributes",
    "Broker": "hal.api.surface",
    "Claim": "hal.model.claim",
    "Client": "hal.api.client",
    "Condition": "hal.model.health",
    "Constraint": "hal.model.claim",
    "Deadline": "hal.interfaces.deadline",
    "Device": "hal.model.device",
    "Gang": "hal.model.claim",
    "Gather": "hal.model.claim",
    "Granted": "hal.broker.command",
    "HalError": "hal.errors",
    "Health": "hal.model.health",
    "HeldLease": "hal.api.held",
    "Inventory": "hal.model.inventory",
    "Keeping": "hal.api.keep",
    "Kind": "hal.model.kind",
    "Lease": "hal.model.lease",
    "Link": "hal.model.device",
    "LocalBroker": "hal.api.local",
    "Locality": "hal.model.claim",
    "Location": "hal.model.device",
    "Operation": "hal.interfaces.operation",
    "Preempt": "hal.model.claim",
    "Queued": "hal.broker.command",
    "Refused": "hal.broker.command",
    "Request": "hal.model.claim",
    "Severity": "hal.model.health",
    "Share": "hal.model.claim",
    "Survey": "hal.agent.survey",
    "Tenant": "hal.model.tenant",
    "Undecided": "hal.broker.command",
    "connect": "hal.api.connect",
    "open_broker": "hal.api.opening",
    "open_lease": "hal.api.held",
    "pairs": "hal.api.ask",
    "survey": "hal.agent.survey",
}

__all__ = [
    "Absence",
    "Attribute",
    "Broker",
    "Claim",
    "Client",
    "Condition",
    "Constraint",
    "Deadline",
    "Device",
    "Gang",
    "Gather",
    "Granted",
    "HalError",
    "Health",
    "HeldLease",
    "Inventory",
    "Keeping",
    "Kind",
    "Lease",
    "Link",
    "LocalBroker",
    "Locality",
    "Location",
    "Operation",
    "Preempt",
    "Queued",
    "Refused",
    "Request",
    "Severity",
    "Share",
    "Survey",
    "Tenant",
    "Undecided",
    "connect",
    "open_broker",
    "open_lease",
    "pairs",
    "survey",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'hal' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
