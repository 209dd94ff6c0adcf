"""The commands of ``hal`` that look at devices: how many there are, why not, and what mends them."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable

from hal.broker.allocation.explain import DeviceReason, Explanation
from hal.cli.asking import now_of, open_any, print_json, span, when
from hal.cli.claims import claim_of
from hal.model.words import are, counted

MOST_NAMES = 8


def do_status(options: argparse.Namespace) -> int:
    """``hal status``."""
    with open_any(options) as broker:
        found = broker.status()
    if options.json:
        print_json(found)
        return 0
    parts = [counted(found.leases, "lease")]
    parts += [f"{counted(found.waiting, 'claim')} in the queue"] if found.waiting else []
    parts += [counted(found.cordons, "cordon")] if found.cordons else []
    print(f"{', '.join(parts)}, journal at revision {found.revision}")
    for kind, row in sorted(found.devices.items()):
        counts = [f"{name} {row[name]}" for name in ("free", "held")]
        counts += [f"{word} {row[name]}" for name, word in _RARE.items() if row.get(name)]
        print(f"  {kind:<8} {row['all']:>5}   {', '.join(counts)}")
    for fenced in found.fenced:
        print(f"  {fenced.device.node}/{fenced.device.name} is fenced since lease {fenced.lease}: {fenced.why}")
    return 0


_RARE = {
    "shared": "shared",
    "fenced": "fenced",
    "unfit": "not fit",
    "tied": "tied to something held",
    "cordoned": "cordoned",
    "kept": "kept for who waits",
}


def do_explain(options: argparse.Namespace) -> int:
    """``hal explain``: would this claim be granted, and if not, why not; exit code 1 for no."""
    wanted = claim_of(options)
    with open_any(options) as broker:
        told = broker.explain(wanted)
    if options.json:
        print_json(told)
        return 0 if told.feasible else 1
    _print_explanation(told)
    return 0 if told.feasible else 1


def _print_explanation(told: Explanation) -> None:
    print(told.reason + (f", at a cost of {told.cost:g}" if told.cost else ""))
    if told.conflict is not None and told.conflict.text != told.reason:
        print(
            f"  {told.conflict.text}{'' if told.conflict.minimal else ' (or a part of that: the search was given up)'}"
        )
    several = {row.request for row in told.requests if row.alternative}
    for row in told.requests:
        can = "" if row.alternative else f", at most {row.feasible_count} now"
        mark = "  <- blocks" if row.blocks and not row.alternative else ""
        name = _choice(row.request, row.alternative, several)
        print(f"  {name}: asked {row.count}, fit {row.matching}, free {row.free}{can}{mark}")
    for other in told.nearest:
        print(f"  would be granted: {other}")
    if told.feasible:
        return
    for (name, reason), names in grouped(told.devices, several).items():
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        about = f"for {name}: " if name else ""
        print(f"  {about}{counted(len(names), 'device')} ({', '.join(names[:MOST_NAMES])}{more}): {reason}")
    if told.unlisted:
        print(f"  {counted(told.unlisted, 'device')} more {are(told.unlisted)} refused, and not listed")


def _choice(request: str, alternative: int, several: Collection[str]) -> str:
    """Return what a line is about: a request, or which of its alternatives."""
    if request not in several:
        return request
    return f"{request}, alternative {alternative}" if alternative else f"{request}, first choice"


def grouped(reasons: Iterable[DeviceReason], several: Collection[str] = ()) -> dict[tuple[str, str], list[str]]:
    """Return the devices by what keeps them back, the reason of most first.

    The first half of a key is the request and its alternative, of a request that has some (``several``).
    """
    found: dict[tuple[str, str], list[str]] = {}
    for reason in reasons:
        name = f"{reason.node}/{reason.name}"
        about = _choice(reason.request, reason.alternative, several) if reason.request in several else ""
        names = found.setdefault((about, reason.reason), [])
        if name not in names:
            names.append(name)
    order = list(dict.fromkeys(about for about, _ in found))
    return dict(sorted(found.items(), key=lambda item: (order.index(item[0][0]), -len(item[1]))))


def do_repair(options: argparse.Namespace) -> int:
    """``hal repair``: exit code 1 if it is still kept back."""
    with open_any(options) as broker:
        done = broker.repair(
            options.device,
            scrub=options.scrub,
            by_operator=options.by_operator,
            deadline_seconds=options.timeout,
        )
    if options.json:
        print_json(done)
        return 0 if done.unfit is None else 1
    print(f"{done.name}  {done.device}  {'; '.join(done.steps)}")
    for condition in done.cleared:
        print(f"  cleared: {condition.type} ({condition.severity.value}): {condition.evidence}")
    print("  it may be claimed again" if done.unfit is None else f"  it is still kept back: {done.unfit}")
    return 0 if done.unfit is None else 1


def do_queue(options: argparse.Namespace) -> int:
    """``hal queue``."""
    with open_any(options) as broker:
        waiting = broker.queue(options.tenant)
        now = now_of(broker)
    if options.json:
        print_json({"waiting": waiting})
        return 0
    for one in waiting:
        starts = f", expected {when(one.starts_at, now)}" if one.starts_at is not None else ""
        why = f": {one.why}" if one.why else ""
        print(
            f"{one.position:>4}  {one.claim.id}  tenant {one.claim.tenant}  priority {one.claim.priority}  "
            f"{span(now - one.since)} in the queue{starts}{why}"
        )
    if not waiting:
        print("nobody waits")
    return 0
