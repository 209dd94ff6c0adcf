"""Flow rules on the card's switch: tc-flower filters on its uplinks and representors, where the Arm cores see them.

A preference of tc belongs to one protocol, and among filters of one preference the order is not defined. So every
filter gets a preference of its own: ``16 * priority`` and the next fifteen are those of one priority, in the order of
age, which is the order that :class:`hal.interfaces.dpu.Flows` promises. Source: tc(8), tc-flower(8), and the JSON of
``tc -json -statistics filter show``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from hal.errors import DeviceBusy, HardwareFault, InvalidArgument, Unsupported
from hal.interfaces.deadline import Deadline
from hal.interfaces.dpu import FlowAction, FlowMatch, FlowRule, FlowVerdict
from hal_bluefield.commands import Result, Shell
from hal_bluefield.matches import variants
from hal_bluefield.record import Filter, Record, RecordFile, Rule

SLOTS = 16
MAX_PRIORITY = 0xFFFF // SLOTS - 1
_PORT = re.compile(r"(p\d+|pf\d+hpf|pf\d+vf\d+|en\d?f\d+pf\d+sf\d+)\Z")
Counters = dict[tuple[str, int], tuple[int, int]]
"""By port and preference: packets and bytes."""


class Flows:
    """The flow rules of one card."""

    def __init__(self, shell: Shell, device: str, ports: tuple[str, ...], record: RecordFile) -> None:
        self._shell = shell
        self._device = device
        self._ports = ports
        self._record = record

    def all(self, step: str, deadline: Deadline) -> Sequence[FlowRule]:
        """Return the rules with their counters, in the order in which they are asked. A rule whose filters the card has
        lost (it restarted) is forgotten.
        """
        rules = self._record.read().rules
        if not rules:
            return ()
        counters = self._counters({each.port for rule in rules for each in rule.filters}, step, deadline)
        alive = [rule for rule in rules if any(_key(each) in counters for each in rule.filters)]
        if len(alive) < len(rules):
            lost = {rule.rule.id for rule in rules} - {rule.rule.id for rule in alive}
            self._edit(lambda kept: tuple(rule for rule in kept if rule.rule.id not in lost), step)
        counted = [_with_counters(rule, counters) for rule in alive]
        return sorted(counted, key=lambda rule: (rule.priority, rule.id))

    def add(self, match: FlowMatch, action: FlowAction, priority: int, fence: int, deadline: Deadline) -> FlowRule:
        """Add a rule. On failure nothing of it is left."""
        step = "add_flow"
        chosen = variants(match, self._device, step)
        if not 0 <= priority <= MAX_PRIORITY:
            raise self._wrong(f"priority {priority}", f"0 to {MAX_PRIORITY}", step)
        there = self._all_ports(step, deadline)
        if action.verdict is FlowVerdict.REDIRECT and action.port not in there:
            raise self._wrong(f"redirect to {action.port!r}", f"one of {', '.join(there)}", step)
        if match.in_port is not None and match.in_port not in there:
            raise self._wrong(f"in_port {match.in_port!r}", f"one of {', '.join(there)}", step)
        ports = (match.in_port,) if match.in_port is not None else there
        made: list[FlowRule] = []

        def edit(record: Record) -> Record:
            rule_id = record.next_rule
            used = {each.preference for rule in record.rules for each in rule.filters}
            free = [slot for slot in range(1 + SLOTS * priority, 1 + SLOTS * (priority + 1)) if slot not in used]
            newest = max((slot for slot in used if slot // SLOTS == priority), default=0)
            free = [slot for slot in free if slot > newest]
            if len(free) < len(chosen):
                raise DeviceBusy(
                    f"there is no room for more rules of priority {priority}",
                    device=self._device,
                    during=step,
                    hint="another priority, or delete rules",
                )
            filters = tuple(
                (Filter(port, slot, protocol, rule_id), words)
                for port in ports
                for slot, (protocol, words) in zip(free, chosen, strict=False)
            )
            rule = FlowRule(id=rule_id, match=match, action=action, priority=priority)
            self._install(filters, action, step, deadline)
            made.append(rule)
            return msgspec.structs.replace(
                record,
                rules=(*record.rules, Rule(rule, tuple(each for each, _ in filters), fence)),
                next_rule=rule_id + 1,
            )

        self._record.change(edit, step)
        return made[0]

    def delete(self, rule_id: int, deadline: Deadline) -> None:
        """Take one rule away."""
        self._drop(lambda rule: rule.rule.id == rule_id, "delete_flow", deadline, must=rule_id)

    def take_back(self, fence: int, step: str, deadline: Deadline) -> None:
        """Take away the rules of every lease up to this fence."""
        self._drop(lambda rule: rule.fence <= fence, step, deadline)

    def _drop(self, choose: Callable[[Rule], bool], step: str, deadline: Deadline, must: int | None = None) -> None:
        def edit(record: Record) -> Record:
            gone = [rule for rule in record.rules if choose(rule)]
            if must is not None and not gone:
                raise self._wrong(f"there is no rule {must}", "flows() lists them", step)
            for rule in gone:
                self._remove(rule.filters, step, deadline)
            return msgspec.structs.replace(record, rules=tuple(rule for rule in record.rules if rule not in gone))

        self._record.change(edit, step)

    def _edit(self, edit: Callable[[tuple[Rule, ...]], tuple[Rule, ...]], step: str) -> None:
        self._record.change(lambda record: msgspec.structs.replace(record, rules=edit(record.rules)), step)

    def _install(
        self,
        filters: Sequence[tuple[Filter, tuple[str, ...]]],
        action: FlowAction,
        step: str,
        deadline: Deadline,
    ) -> None:
        act = _action_words(action)
        lines: list[str] = []
        for port in dict.fromkeys(each.port for each, _ in filters):
            lines.append(f"qdisc replace dev {port} clsact")
        for each, words in filters:
            lines.append(f"filter add {_place(each)} handle {each.handle} flower {' '.join(words)} {' '.join(act)}")
        result = self._batch(lines, step, deadline)
        if result.code:
            self._remove([each for each, _ in filters], step, deadline)
            raise HardwareFault(
                f"tc refuses the rule: {result.complaint}",
                device=self._device,
                during=step,
                hint="a match that the card's switch knows; see tc-flower(8)",
            )

    def _remove(self, filters: Sequence[Filter], step: str, deadline: Deadline) -> None:
        """Take filters away; those that are not there (the card restarted, or an addition failed) are no error."""
        if not filters:
            return
        self._batch([f"filter del {_place(each)}" for each in filters], step, deadline, go_on=True)
        left = self._counters({each.port for each in filters}, step, deadline)
        stay = [each for each in filters if _key(each) in left]
        if stay:
            raise HardwareFault(
                f"tc cannot take {len(stay)} filters away, the first on {stay[0].port}",
                device=self._device,
                during=step,
                hint="look at tc filter show on the card",
            )

    def _counters(self, ports: set[str], step: str, deadline: Deadline) -> Counters:
        found: Counters = {}
        asked = sorted(ports)
        told = self._shown(asked, step, deadline)
        if len(told) < len(asked):  # a port is gone, its filters with it: which one takes a question for each
            told = [each for port in asked for each in (self._shown([port], step, deadline) or [[]])]
        try:
            for port, entries in zip(asked, told, strict=True):
                for entry in entries:
                    if "options" in entry:
                        found[port, int(entry["pref"])] = _counted(entry["options"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HardwareFault(
                f"tc's list of filters makes no sense: {error}",
                device=self._device,
                during=step,
                hint="a newer iproute2 on the card",
            ) from None
        return found

    def _shown(self, ports: Sequence[str], step: str, deadline: Deadline) -> list[list[dict[str, Any]]]:
        """Return the filters of each port: one JSON list for each, one after the other."""
        lines = [f"filter show dev {port} ingress" for port in ports]
        text = self._batch(lines, step, deadline, "-json", "-statistics", go_on=True).out.strip()
        decoder, lists, at = json.JSONDecoder(), [], 0
        while at < len(text):
            try:
                value, at = decoder.raw_decode(text, at)
            except ValueError:
                break
            lists.append(value)
            while at < len(text) and text[at].isspace():
                at += 1
        return lists

    def _all_ports(self, step: str, deadline: Deadline) -> tuple[str, ...]:
        if self._ports:
            return self._ports
        result = self._shell.run(("ls", "/sys/class/net"), step=step, deadline=deadline)
        found = tuple(sorted(name for name in result.out.split() if _PORT.match(name)))
        if not found:
            raise Unsupported(
                "the card shows no uplink and no representor",
                device=self._device,
                during=step,
                hint="switchdev mode: devlink dev eswitch set pci/... mode switchdev; or ports in bluefield.toml",
            )
        return found

    def _batch(self, lines: Sequence[str], step: str, deadline: Deadline, *options: str, go_on: bool = False) -> Result:
        """Let tc do several things in one call: each call is a way to the card and back."""
        words = ("tc", *options, *(("-force",) if go_on else ()), "-batch", "-")
        return self._shell.run(words, step=step, deadline=deadline, feed="\n".join(lines) + "\n")

    def _wrong(self, what: str, hint: str, step: str) -> InvalidArgument:
        return InvalidArgument(what, device=self._device, during=step, hint=hint)


def _key(each: Filter) -> tuple[str, int]:
    return each.port, each.preference


def _place(each: Filter) -> str:
    return f"dev {each.port} ingress protocol {each.protocol} pref {each.preference}"


def _with_counters(rule: Rule, counters: Counters) -> FlowRule:
    counted = [counters.get(_key(each), (0, 0)) for each in rule.filters]
    return msgspec.structs.replace(
        rule.rule, packets=sum(packets for packets, _ in counted), bytes=sum(size for _, size in counted)
    )


def _counted(options: dict[str, Any]) -> tuple[int, int]:
    """Return what the first action has seen: every packet of the filter passes it."""
    actions = options.get("actions")
    stats = actions[0].get("stats", {}) if isinstance(actions, list) and actions else {}
    return int(stats.get("packets", 0)), int(stats.get("bytes", 0))


def _action_words(action: FlowAction) -> tuple[str, ...]:
    if action.verdict is FlowVerdict.REDIRECT:
        return ("action", "mirred", "egress", "redirect", "dev", str(action.port))
    return ("action", "drop" if action.verdict is FlowVerdict.DROP else "pass")
