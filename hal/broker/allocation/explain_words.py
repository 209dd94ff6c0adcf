"""Refusals in words: what is needed, what there is, and what cannot be kept together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from hal.broker.allocation.choice import Cause, GangShort, NoNode, Refusal
from hal.broker.allocation.explain_conflict import Core
from hal.broker.allocation.explain_reasons import why_not, why_unmatched
from hal.broker.allocation.explain_sight import Sight, sight_of
from hal.broker.allocation.problem import Conflict
from hal.broker.allocation.view import View, view_of
from hal.model.claim import Claim, Constraint, Gather, Locality, Request, request_names
from hal.model.words import are, counted, measured

if TYPE_CHECKING:
    from hal.broker.state import State

_PLACES = {
    Locality.NODE.value: "node",
    Locality.NUMA.value: "NUMA node",
    Locality.PCI_SWITCH.value: "PCI switch",
    Locality.RACK.value: "rack",
    Locality.LINK_DOMAIN.value: "link domain",
}
MOST_SITUATIONS = 64
"""Among how many machines the fullest place is looked for, to say in a refusal how much it offers."""
MOST_COUNTED = 256
"""Among how many devices each one's reason is counted in a refusal; of more only how many fit and are free."""


def refusal_words(state: State, claim: Claim, refusal: Refusal) -> str:
    """Return why a claim was refused. It names requests and numbers, nobody's leases."""
    told = _told(state, claim, refusal.cause, refusal.requests or claim.requests)
    if refusal.tried > 1:
        told += f"; {counted(refusal.tried - 1, 'other way')} to meet it will not do either"
    return told


def _told(state: State, claim: Claim, cause: Cause, requests: Sequence[Request]) -> str:
    if isinstance(cause, GangShort):
        return _gang(cause)
    names = request_names(claim.requests)
    if isinstance(cause, NoNode):
        return _no_node(state, claim, cause, names)
    who = [described(requests[i], names[i]) for i in cause.requests]
    if cause.fate:
        return f"{joined(who)} cannot be met: devices that share their fate cannot be given together"
    if not cause.rules:
        return _short(state, [requests[i] for i in cause.requests], who, cause)
    if len(cause.rules) == 1:
        return _one_rule(claim, claim.constraints[cause.rules[0]], who, cause)
    rules = joined([rule_words(claim.constraints[number]) for number in cause.rules])
    return f"{joined(who)} cannot be met together: {rules}"


def _short(state: State, requests: Sequence[Request], who: Sequence[str], cause: Conflict) -> str:
    several = len(requests) > 1
    if requests[0].count == "all" and not several:
        return f"there is no machine with every device that fits {who[0]} free"
    if cause.available >= cause.needed:
        return f"{joined(who)} cannot be met together"
    devices = f"{counted(cause.available, 'device')} {are(cause.available)}"
    text = f"{joined(who)} need{'' if several else 's'} {cause.needed}, but {devices} free for "
    text += "them together" if several else "it"
    kinds = {request.kind for request in requests}
    if len(state.devices) <= MOST_COUNTED:
        if not any(device.kind in kinds for device in state.devices.values()):
            return f"{text} (there is none in the inventory)"
        tally = _tally(state, requests[0])
        return f"{text} ({'; '.join(f'{count} {why}' for why, count in tally.most_common(6))})" if tally else text
    sights = [sight_of(state, request) for request in requests]
    if not any(sight.there for sight in sights):
        return f"{text} (there is none in the inventory)"
    rough = [_rough(who[i] if several else "", sight) for i, sight in enumerate(sights)]
    return f"{text} ({'; '.join(each for each in rough if each)})" if any(rough) else text


def _tally(state: State, request: Request) -> Counter[str]:
    """Count what keeps the devices of the kind from a request, without names of leases."""
    tally: Counter[str] = Counter()
    for device in state.devices.values():
        reason = why_not(state, request, device) if device.kind is request.kind else None
        if reason is None:
            continue
        for beginning, short in _SHORT.items():
            if reason.startswith(beginning):
                reason = short
        if request.where and reason.startswith(request.where):
            reason = "not selected"
        elif why_unmatched(request, device) == reason:
            reason = "not large enough" if reason.startswith("it has") else "not selected"
        tally[reason.partition(", which is")[0]] += 1
    return tally


_SHORT = {
    "held in part": "held in part",
    "held by": "held",
    "shared by": "shared",
    "kept for": "kept for others",
    "fenced": "fenced",
}


def _rough(who: str, sight: Sight) -> str:
    parts = []
    if sight.there > sight.matching:
        parts.append(f"{sight.there - sight.matching} of {sight.there} not selected")
    if sight.matching > sight.free:
        parts.append(f"{sight.matching - sight.free} of {sight.matching} that fit are held, kept or unfit")
    return f"{who}: {', '.join(parts)}" if parts and who else ", ".join(parts)


def _one_rule(claim: Claim, rule: Constraint, who: Sequence[str], cause: Conflict) -> str:
    need = "needs" if len(who) == 1 else "need"
    numbers = cause.available < cause.needed
    needed = f": {cause.needed} are needed, and there {are(cause.available)} {cause.available}"
    if rule.pairwise:
        text = f"{joined(who)} cannot be paired, each pair on one {place_word(rule.same)}"
        return text + needed if numbers else text
    if rule.distinct:
        text = f"{joined(who)} cannot all lie on different {place_word(rule.distinct)}s"
        return text + needed if numbers else text
    if numbers and not cause.available and cause.needed:
        return f"no {place_word(rule.same)} is known for any free device that fits {joined(who)}"
    text = f"no single {place_word(rule.same)} has what {joined(who)} {need}"
    if numbers:
        return f"{text}: {counted(cause.needed, 'device')} together, the fullest offers {cause.available}"
    return f"{text}: not so many of each, or they share their fate"


def _no_node(state: State, claim: Claim, cause: NoNode, names: Sequence[str]) -> str:
    need = "needs" if len(names) == 1 else "need"
    if cause.rule is None:
        return f"no single node of {cause.nodes} has what {joined(names)} {need}"
    rule = claim.constraints[cause.rule]
    place = place_word(rule.same)
    text = f"no single {place} has what {joined(names)} {need}"
    best = _fullest(state, view_of(state, (claim.requests, claim.constraints)), rule.same)
    if best is None:
        return text
    known = [request.count for request in claim.requests if request.count != "all"]
    wanted = sum(known)
    if best == 0:
        return f"no {place} is known for any free device that fits {joined(names)}, so same {place} cannot be shown"
    if best >= wanted:
        return (
            f"{text}: the fullest offers {counted(best, 'device')}, but not so many of each, or they share their fate"
        )
    return f"{text}: {counted(wanted, 'device')} together, the fullest offers {best}"


def _fullest(state: State, view: View, level: str) -> int | None:
    """Return the most devices that one place has free for the requests, None where that takes long to say."""
    look = view.look(state, next(view.readings()))
    situations = look.table.alive() if len(state.nodes) <= MOST_SITUATIONS else []
    best: int | None = None
    for situation in situations:
        facts = look.facts(situation)
        union = 0
        for mask in facts.available(situation):
            union |= mask
        layout = facts.layout
        places = {Locality.NUMA.value: layout.numa, Locality.PCI_SWITCH.value: layout.switches}.get(level, (union,))
        best = max([best or 0, *[(place & union).bit_count() for place in places]])
    return best


def _gang(cause: GangShort) -> str:
    over, wanted = place_word(cause.over.value), counted(cause.needed, "replica")
    if cause.everywhere >= cause.needed:
        how = {
            Gather.ONE: f"in one {over}",
            Gather.SPREAD: f"apart, each in its own {over} or as many as are allowed in one",
        }.get(cause.how, f"over {over}s")
        return f"{wanted} cannot lie {how}: {cause.fits} fit, {cause.everywhere} however they lie"
    return f"{wanted} {are(cause.needed)} asked for, and there is room for {cause.fits}"


def core_words(claim: Claim, core: Core) -> str:
    """Return in words what cannot be met together."""
    names = request_names(claim.requests)
    parts = [f"{described(claim.requests[i], names[i])} ({amount(claim.requests[i])})" for i in core.requests]
    parts += [rule_words(claim.constraints[number]) for number in core.constraints]
    if core.gang and claim.gang is not None:
        parts.append(gang_words(claim))
    elif core.replicas:
        parts.append(f"{counted(claim.replicas, 'replica')}, each on one node")
    return joined(parts)


def gang_words(claim: Claim) -> str:
    """Return how the replicas of a claim lie, in words."""
    gang = claim.gang
    assert gang is not None
    over = place_word(gang.over.value)
    how = {Gather.ONE: f"in one {over}", Gather.SPREAD: f"spread over {over}s"}.get(gang.how, f"over few {over}s")
    most = f", at most {gang.most} in each" if gang.most is not None else ""
    return f"{counted(claim.replicas, 'replica')} {how}{most}"


def rule_words(rule: Constraint) -> str:
    """Return a constraint in words."""
    about = f" for {joined(rule.requests)}" if rule.requests else ""
    if rule.pairwise:
        return f"pairs on the same {place_word(rule.same)}{about}"
    return f"{'same' if rule.same else 'different'} {place_word(rule.same or rule.distinct)}{about}"


def place_word(what: str) -> str:
    """Return what people call a level; an attribute is called by its name."""
    return _PLACES.get(str(what), str(what))


def described(request: Request, name: str) -> str:
    """Return a request in words: its name, its kind, its selectors."""
    kind = "" if name == request.kind.value else f" ({request.kind.value})"
    where = " and ".join(text for text in (request.where, *request.cel) if text)
    return f"{name}{kind}{f' where {where}' if where else ''}"


def amount(request: Request) -> str:
    """Return how much of each device is asked, and of how many."""
    count = "every device of a node" if request.count == "all" else str(request.count)
    if request.profile:
        return f"{count} x {request.profile}"
    sizes = ", ".join(measured(size, name) for name, size in sorted(request.capacity.items()))
    return f"{count}, {request.share.value}, {sizes}" if sizes else count


def joined(words: Iterable[str]) -> str:
    """Return words as one types them."""
    found = list(words)
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} and {found[-1]}" if found else "nothing"
