"""One look at the machine for any verb: survey, filters, expectations, exit status."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

import msgspec

from hal.agent.survey import Survey, survey
from hal.cli.probe_document import Expectation, InventoryReport, SuggestionRecord, nodes_of, record
from hal.cli.probe_options import Options
from hal.errors import UsageError
from hal.model.device import Device
from hal.model.health import Health, Presence
from hal.model.kind import Kind

_ROOTS = "a folder with a sys in it, or a snapshot made by hal-probe snapshot"
HEALTHY, DEGRADED, ABSENT, PARTIAL, USAGE = 0, 1, 2, 3, 64


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen. ``devices`` passed the filters; ``survey`` holds everything."""

    survey: Survey
    devices: tuple[Device, ...]
    expectations: tuple[Expectation, ...]
    taken_at: float
    exit_code: int


def look(options: Options) -> Look:
    """Look once; raises ``UsageError`` for a root that cannot be looked at."""
    root = find_root(options.root)
    found = survey(deadline_seconds=options.timeout, root=root)
    devices = chosen(found.inventory, options)
    expectations = tuple(expect(found.inventory, kind, count) for kind, count in options.expect)
    return Look(
        survey=found,
        devices=devices,
        expectations=expectations,
        taken_at=time.time(),
        exit_code=exit_code(devices, expectations, found.partial),
    )


def find_root(root: str | None) -> str | None:
    """Return the folder to look at instead of ``/``; a snapshot is unpacked first."""
    if root is None:
        return None
    if not os.path.exists(root):
        raise UsageError(f"{root or 'a path without a name'} does not exist", during="--root", hint=_ROOTS)
    if os.path.isdir(root):
        folder = root
    elif os.path.isfile(root):
        from hal.errors import HalError
        from hal.host.archive import unpack

        try:
            folder = unpack(root)
        except HalError as error:
            why = " ".join(error.message.split())
            raise UsageError(why, during="--root", hint="hal-probe snapshot FILE.tgz makes one") from error
    else:  # a pipe or a device may never come to an end
        raise UsageError(f"{root} is neither a file nor a folder", during="--root", hint=_ROOTS)
    if not any(os.path.isdir(os.path.join(folder, name)) for name in ("sys", "bus", "class", "devices")):
        raise UsageError(f"{root} holds no sys/, bus/ or class/", during="--root", hint=_ROOTS)
    return folder


def chosen(devices: Iterable[Device], options: Options) -> tuple[Device, ...]:
    """Return the devices that pass ``--kind`` and ``--where``, in their order."""
    kinds = options.kinds
    everything = tuple(devices)
    found = tuple(device for device in everything if kinds is None or device.kind in kinds)
    if not options.where:
        return found
    from hal.model.selector import compile_selector

    names: set[str] = set()  # a misspelt attribute would match nothing, and look like an answer
    for device in everything:
        names.update(device.attributes, device.capacity)
    matches = compile_selector(options.where, names).matches
    return tuple(device for device in found if matches(device))


def expect(devices: Iterable[Device], kind: Kind, count: int) -> Expectation:
    """Count what ``--expect`` counts: whole devices that are there; a part of one (MIG) is not another one."""
    whole = [device for device in devices if device.kind is kind]
    ids = {device.id for device in whole}
    found = sum(device.presence is not Presence.MISSING and device.parent not in ids for device in whole)
    return Expectation(kind=kind, expected=count, found=found, met=found >= count)


def exit_code(devices: Iterable[Device], expectations: Iterable[Expectation], partial: bool) -> int:
    """Return the exit status: the highest that applies.

    The higher, the less the answer may be trusted: a partial view proves no absence, so 3 hides 2; a device that is
    not there cannot be degraded, so 2 hides 1.
    """
    if partial:
        return PARTIAL
    if not all(expectation.met for expectation in expectations):
        return ABSENT
    return HEALTHY if all(device.health is Health.HEALTHY for device in devices) else DEGRADED


def inventory_report(seen: Look) -> InventoryReport:
    """Return what a look found as the report for programs."""
    return InventoryReport(
        taken_at=seen.taken_at,
        exit_code=seen.exit_code,
        problems=seen.survey.problems,
        nodes=nodes_of(seen.devices),
        devices=tuple(record(device) for device in seen.devices),
        drivers=seen.survey.reports,
        suggestions=suggestions(seen.survey),
        expectations=seen.expectations,
    )


def suggestions(found: Survey) -> tuple[SuggestionRecord, ...]:
    """Return what could be installed, with the command that does it."""
    return tuple(
        SuggestionRecord(
            device=one.device,
            node=one.node,
            kind=one.kind,
            model=one.model,
            text=one.text,
            remedy=f"pip install {one.distribution}",
        )
        for one in found.suggestions
    )


def distinct(found: tuple[SuggestionRecord, ...]) -> tuple[SuggestionRecord, ...]:
    """Return one suggestion for all hardware of one model on a node: eight equal cards want one line."""
    alike: dict[tuple[str, str, str], list[SuggestionRecord]] = {}
    for one in found:
        alike.setdefault((one.node, one.model, one.remedy), []).append(one)
    return tuple(
        group[0]
        if len(group) == 1
        else msgspec.structs.replace(
            group[0], text=group[0].text.replace("; nothing", f", and {len(group) - 1} more like it; nothing", 1)
        )
        for group in alike.values()
    )
