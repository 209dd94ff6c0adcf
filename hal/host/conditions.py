"""What the kernel's own view says about health: few conditions, each with what was read."""

from __future__ import annotations

import time

from hal.model.attributes import Attribute
from hal.model.health import Action, Condition, Radius, Severity

_Facts = dict[str, Attribute]
_PCI_ERRORS = (("pci_fatal_errors", Severity.DEGRADED), ("pci_nonfatal_errors", Severity.WARN))


def judge(id: str, facts: _Facts) -> tuple[Condition, ...]:
    """Return the conditions that a device's attributes amount to.

    A narrow link or a port that is down may be meant so and is a warning; bad blocks and a controller that is not live
    are worse. A slow link is none: idle devices slow theirs down to save power. Errors that PCI Express corrected by
    itself are none either; those it could not correct stay told until the function is reset or the machine rebooted.
    """
    found: list[Condition] = []
    get = facts.get
    widest = get("link_max_width")
    width, most = (_number(get("link_width")), _number(widest)) if widest is not None else (None, None)
    if width is not None and most is not None and width < most:
        found.append(_condition(id, "LinkNarrow", Severity.WARN, f"{width} of {most} PCI Express lanes", Radius.LINK))
    for name, severity in _PCI_ERRORS:
        errors = get(name)
        if errors is not None and errors.value:
            evidence = (
                f"{errors.value} {name[4:-7].replace('nonfatal', 'non-fatal')} errors on PCI Express since it came up"
            )
            found.append(_condition(id, "PciError", severity, evidence, Radius.LINK))
            break
    state = get("port_state")
    if state is not None and state.known and state.value != "active":
        found.append(_condition(id, "LinkDown", Severity.WARN, f"the port is {state.value}", Radius.LINK))
    bad = _number(get("bad_blocks"))
    if bad:
        evidence = f"{bad} bad blocks of 512 bytes"
        found.append(_condition(id, "BadBlocks", Severity.DEGRADED, evidence, Radius.DEVICE))
    live = get("state")
    if live is not None and live.known and live.value not in ("live", "new", "connecting"):
        found.append(_condition(id, "NotLive", Severity.CRITICAL, f"the controller is {live.value}", Radius.DEVICE))
    return tuple(found)


def _number(attribute: Attribute | None) -> int | None:
    value = attribute.value if attribute is not None else None
    return value if isinstance(value, int) else None


def _condition(
    id: str, type: str, severity: Severity, evidence: str, radius: Radius, action: Action = Action.NONE
) -> Condition:
    now = time.time()
    return Condition(
        device=id,
        type=type,
        severity=severity,
        evidence=evidence,
        source="sysfs",
        radius=radius,
        action=action,
        first_seen_at=now,
        last_seen_at=now,
    )
