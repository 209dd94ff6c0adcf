"""``hal-probe list`` for people: the table, and below it what is hidden, undriven or wrong."""

from __future__ import annotations

from collections import Counter

from hal.cli.probe_look import Look, distinct, suggestions
from hal.cli.probe_options import Options
from hal.cli.render.describe import HIDDEN_KINDS
from hal.cli.render.table import device_table
from hal.cli.render.text import Style, clean, cut, terminal_columns
from hal.model.device import Device
from hal.model.health import Health
from hal.model.words import counted


def list_lines(seen: Look, options: Options) -> list[str]:
    """Return the table and the lines below it."""
    columns, style = terminal_columns(), Style(options.color)
    shown = visible(seen.devices, options)
    lines = device_table(shown, columns, style)
    below = [_count(shown)]
    hidden = len(seen.devices) - len(shown)
    if hidden:
        below.append(f"{hidden} bridges and other PCI functions are not shown (--all shows them)")
    below += [f"{clean(one.text)} ({one.remedy})" for one in distinct(suggestions(seen.survey))]
    if any(device.health is not Health.HEALTHY for device in shown) or seen.survey.partial:
        below.append("hal-probe doctor says what to do")
    return [*lines, *([""] if lines else []), *(line if columns is None else cut(line, columns) for line in below)]


def visible(devices: tuple[Device, ...], options: Options) -> tuple[Device, ...]:
    """Leave out healthy bridges and bare PCI functions, unless all devices or just these kinds were asked for."""
    asked = options.kinds or frozenset()
    if options.all:
        return devices
    return tuple(
        device
        for device in devices
        if device.kind not in HIDDEN_KINDS or device.kind in asked or device.health is not Health.HEALTHY
    )


def _count(devices: tuple[Device, ...]) -> str:
    if not devices:
        return "nothing found (hal-probe doctor says why)"
    kinds = Counter(device.kind.value for device in devices)
    health = Counter(device.health for device in devices)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    ill = ", ".join(f"{count} {one.value}" for one, count in health.items() if one is not Health.HEALTHY)
    return f"{counted(len(devices), 'device')} ({listed}): {ill or 'all healthy'}"
