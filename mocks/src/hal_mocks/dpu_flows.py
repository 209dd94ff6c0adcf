"""The switch of a mock DPU: rules in a table that all processes share, counted against synthetic packets."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable

import msgspec

from hal.errors import DeviceBusy, DeviceGone, InvalidArgument
from hal.interfaces.dpu import FlowAction, FlowMatch, FlowRule, FlowVerdict
from hal_mocks.base import write_whole
from hal_mocks.dpu_state import Card, find_card, is_up
from hal_mocks.machine import Machine

TABLE_SIZE = 4096
"""How many rules fit (the mock's own bound)."""


class Packet(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A packet as the switch sees it. ``length_bytes`` counts into the rule's bytes."""

    in_port: str = "p0"
    ethertype: int = 0x0800
    protocol: int = 17
    source: str = "0.0.0.0"
    destination: str = "0.0.0.0"
    source_port: int = 0
    destination_port: int = 0
    vlan: int | None = None
    length_bytes: int = 64


class _Table(msgspec.Struct, frozen=True, kw_only=True):
    next_id: int = 1
    rules: tuple[FlowRule, ...] = ()


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(_Table)
_Test = Callable[[Packet], bool]


def flow_rules(card: Card) -> tuple[FlowRule, ...]:
    """Return the rules in the order in which they are asked."""
    return _load(card).rules


def add_flow_rule(card: Card, match: FlowMatch, action: FlowAction, priority: int) -> FlowRule:
    """Add a rule after those of the same priority."""

    def refuse(why: str, hint: str) -> InvalidArgument:
        return InvalidArgument(why, device=card.id, during="add_flow", hint=hint)

    if (action.port is not None) != (action.verdict is FlowVerdict.REDIRECT):
        raise refuse(f"{action.verdict} with port {action.port}", "redirect names a port, the others do not")
    if priority < 0:
        raise refuse(f"priority {priority}", "priorities start at 0, which is asked first")
    try:
        _compile(match)
    except ValueError as error:
        raise refuse(str(error), "addresses are an IP address or a prefix such as 10.0.0.0/8") from None
    with card.locked():
        table = _load(card)
        if len(table.rules) >= TABLE_SIZE:
            raise DeviceBusy(
                f"the flow table is full ({TABLE_SIZE} rules)",
                device=card.id,
                during="add_flow",
                hint="delete rules, or match by prefix",
            )
        rule = FlowRule(id=table.next_id, match=match, action=action, priority=priority)
        rules = sorted((*table.rules, rule), key=lambda rule: (rule.priority, rule.id))
        _save(card, _Table(next_id=table.next_id + 1, rules=tuple(rules)))
    return rule


def delete_flow_rule(card: Card, rule_id: int) -> None:
    """Take one rule away."""
    with card.locked():
        table = _load(card)
        rules = tuple(rule for rule in table.rules if rule.id != rule_id)
        if len(rules) == len(table.rules):
            raise InvalidArgument(
                f"no flow rule {rule_id}", device=card.id, during="delete_flow", hint="list the rules with flows()"
            )
        _save(card, _Table(next_id=table.next_id, rules=rules))


def clear_flows(card: Card) -> None:
    """Forget all rules; ids are not used again."""
    with card.locked():
        table = _load(card)
        if table.rules:
            _save(card, _Table(next_id=table.next_id))


def inject_packets(machine: Machine, dpu_id: str, packets: Iterable[Packet]) -> tuple[FlowAction, ...]:
    """Send packets through the card's switch and return what became of each.

    The first rule that fits decides and counts; a packet that fits no rule passes and is not counted. Raises
    :class:`~hal.errors.DeviceGone` while the card is down: there is no link then.
    """
    card = find_card(machine, dpu_id)
    if not is_up(machine, dpu_id):
        raise DeviceGone("the card is down", device=dpu_id, during="inject_packets", hint="wait until it is ready")
    passed = FlowAction(verdict=FlowVerdict.PASS)
    outcome: list[FlowAction] = []
    with card.locked():
        table = _load(card)
        tests = [_compile(rule.match) for rule in table.rules]
        hits = [[rule.packets, rule.bytes] for rule in table.rules]
        for packet in packets:
            for index, fits in enumerate(tests):
                if fits(packet):
                    hits[index][0] += 1
                    hits[index][1] += packet.length_bytes
                    outcome.append(table.rules[index].action)
                    break
            else:
                outcome.append(passed)
        rules = tuple(
            msgspec.structs.replace(rule, packets=count, bytes=size)
            for rule, (count, size) in zip(table.rules, hits, strict=True)
        )
        _save(card, _Table(next_id=table.next_id, rules=rules))
    return tuple(outcome)


def _compile(match: FlowMatch) -> _Test:
    exact: list[tuple[str, object]] = []
    prefixes: list[tuple[str, ipaddress.IPv4Network | ipaddress.IPv6Network]] = []
    for name in match.__struct_fields__:
        wanted = getattr(match, name)
        if wanted is None:
            continue
        if name in ("source", "destination"):
            prefixes.append((name, ipaddress.ip_network(wanted, strict=False)))
        else:
            exact.append((name, wanted))

    def fits(packet: Packet) -> bool:
        return all(getattr(packet, name) == wanted for name, wanted in exact) and all(
            ipaddress.ip_address(getattr(packet, name)) in network for name, network in prefixes
        )

    return fits


def _load(card: Card) -> _Table:
    path = card.folder / "flows.json"
    return _DECODER.decode(path.read_bytes()) if path.exists() else _Table()


def _save(card: Card, table: _Table) -> None:
    write_whole(card.folder / "flows.json", _ENCODER.encode(table))
