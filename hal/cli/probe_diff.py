"""``hal-probe diff`` and ``hal-probe snapshot``: machines kept, and compared with one another."""

from __future__ import annotations

import os
import sys

import msgspec

from hal.cli.probe import say_lines, say_report
from hal.cli.probe_document import DeviceRecord, InventoryReport
from hal.cli.probe_look import PARTIAL, chosen, find_root
from hal.cli.probe_options import Options
from hal.cli.probe_reports import ChangeRecord, DiffReport
from hal.cli.render.text import Style, clean
from hal.drivers.contract import Problem
from hal.errors import UsageError
from hal.model.device import Device
from hal.model.event import EventType
from hal.model.inventory import Change, Inventory, diff

_MARKS = {EventType.ADDED: ("+", "32"), EventType.REMOVED: ("-", "31"), EventType.CHANGED: ("~", "33")}


class _Side(msgspec.Struct, frozen=True, kw_only=True):
    inventory: Inventory
    partial: bool


def compare(options: Options) -> int:
    """Compare two machines; 0 if they are the same, 1 if they differ, 3 if one of them was seen in part only."""
    import time

    old, new = options.operands
    before, after = _load(old, options), _load(new, options)
    changes = changes_between(before.inventory, after.inventory, options)
    problems = tuple(
        Problem(source=name, step="look", detail="its view was partial: what it lacks may only have gone unseen")
        for name, side in ((old, before), (new, after))
        if side.partial
    )
    code = PARTIAL if problems else 1 if changes else 0
    if options.format != "table":
        report = DiffReport(
            taken_at=time.time(),
            exit_code=code,
            problems=problems,
            old=old,
            new=new,
            changes=tuple(_record(change) for change in changes),
        )
        say_report(report, options)
        return code
    style = Style(options.color)
    lines: list[str] = []
    for change in changes:
        mark, colour = _MARKS.get(change.type, ("~", "33"))
        device = change.device
        lines.append(
            style.paint(clean(f"{mark} {device.kind} {device.name} on {device.location.node} ({device.id})"), colour)
        )
        lines += [clean(f"    {field}") for field in change.fields]
    say_lines(lines or ["no difference"])
    for problem in problems:
        print(clean(f"hal-probe: {problem.source}: {problem.detail}"), file=sys.stderr)
    return code


def changes_between(old: Inventory, new: Inventory, options: Options) -> tuple[Change, ...]:
    """Return the changes of what passes the filters; when evidence was last seen is no change."""
    before, after = Inventory(chosen(old, options)), Inventory(chosen(new, options))
    return tuple(change for change in diff(before, after) if change.type is not EventType.CHANGED or change.fields)


def _record(change: Change) -> ChangeRecord:
    device = change.device
    return ChangeRecord(
        type=change.type,
        device=device.id,
        kind=device.kind,
        name=device.name,
        node=device.location.node,
        fields=change.fields,
    )


def _load(source: str, options: Options) -> _Side:
    """Read a machine from a JSON report, a snapshot or a recorded tree."""
    if source == "-":
        return _decode(source, sys.stdin.buffer.read())
    if not os.path.isdir(source):
        try:
            with open(source, "rb") as file:
                data = file.read()
        except OSError as error:
            raise UsageError(
                f"{source} cannot be read: {error.strerror}", during="diff", hint="a report, a snapshot or a folder"
            ) from error
        if data[:2] != b"\x1f\x8b":
            return _decode(source, data)
    from hal.agent.survey import survey

    found = survey(deadline_seconds=options.timeout, root=find_root(source))
    found.close()
    return _Side(inventory=found.inventory, partial=found.partial)


def _decode(source: str, data: bytes) -> _Side:
    try:
        report = msgspec.json.decode(data, type=InventoryReport)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{source} is no report of hal-probe: {error}", during="diff", hint="hal-probe --format json writes one"
        ) from error
    return _Side(inventory=Inventory(_device(record) for record in report.devices), partial=report.exit_code == PARTIAL)


def _device(record: DeviceRecord) -> Device:
    return Device(**{name: getattr(record, name) for name in Device.__struct_fields__})


def snapshot(options: Options) -> int:
    """Record this machine, or the one under ``--root``, into an archive; with several machines one archive each."""
    from hal.agent.survey import survey
    from hal.host.snapshot import record

    target = options.operands[0]
    found = survey(deadline_seconds=options.timeout, root=find_root(options.root), kinds=())
    found.close()
    lines: list[str] = []
    for host in found.hosts:
        name = target if len(found.hosts) == 1 else _beside(target, host.node)
        recording = record(host, name)
        unread = f", {len(recording.unreadable)} attributes unreadable" if recording.unreadable else ""
        lines.append(clean(f"{name}: {recording.entries} entries{unread}; look at it with hal-probe --root {name}"))
    say_lines(lines)
    return 0


def _beside(target: str, node: str) -> str:
    for ending in (".tar.gz", ".tgz"):
        if target.endswith(ending):
            return f"{target.removesuffix(ending)}-{node}{ending}"
    return f"{target}-{node}"
