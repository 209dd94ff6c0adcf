"""``hal-probe watch``: a line for everything that appears, changes, fails or goes.

The kernel's uevents say at once that something happened; what happened is found by looking again and comparing, so
that no event needs to be understood, and a lost one costs nothing but time. Where there are no uevents (a recorded
tree, mock hardware, health that no event announces) an interval does the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from hal.cli.probe import say, say_lines
from hal.cli.probe_bell import Bell
from hal.cli.probe_diff import changes_between
from hal.cli.probe_document import encode
from hal.cli.probe_look import Look, look
from hal.cli.probe_options import Options
from hal.cli.probe_reports import WatchEvent
from hal.cli.render.text import Style, clean
from hal.interfaces.deadline import Deadline
from hal.model.event import EventType
from hal.model.inventory import Change
from hal.model.words import counted

_COLOURS = {"added": "32", "removed": "31", "condition": "35", "changed": "33", "problem": "31"}
_INTERVAL_SECONDS = 1.0


def watch(options: Options) -> int:
    """Watch until ``--for`` is over or somebody interrupts; the exit status is that of the last look."""
    import gc

    gc.enable()  # unlike the other verbs, this one stays
    end = Deadline.after(options.seconds) if options.seconds is not None else Deadline.never()
    style = Style(options.color)
    seen = look(options)
    try:
        with Bell(any(host.root is None for host in seen.survey.hosts)) as bell:
            _say(_first(seen, bell), options, style)
            for problem in seen.survey.problems:
                _say(_event("problem", f"{problem.source}: {problem.detail}"), options, style)
            while not end.expired:
                lost = bell.wait(min(options.interval or _INTERVAL_SECONDS, end.remaining_seconds))
                if lost:
                    _say(
                        _event("lost", f"the kernel lost events ({lost} overruns); looking at everything again"),
                        options,
                        style,
                    )
                before, seen = seen, _again(seen, options)
                for event in events(before, seen, options):
                    _say(event, options, style)
    except KeyboardInterrupt:
        pass
    finally:
        seen.survey.close()
    return seen.exit_code


def _again(seen: Look, options: Options) -> Look:
    seen.survey.close()
    return look(options)


def events(before: Look, after: Look, options: Options) -> Iterator[WatchEvent]:
    """Yield what is different between two looks, removals first."""
    for change in changes_between(before.survey.inventory, after.survey.inventory, options):
        if change.type is not EventType.CHANGED:
            yield _about(change, change.type.value, clean(str(change.device.value("model") or "")))
            continue
        health = [field for field in change.fields if field.startswith(("condition ", "presence: "))]
        other = [field for field in change.fields if field not in health]
        if health:
            yield _about(change, EventType.CONDITION.value, "; ".join([*health, *_evidence(change)]))
        if other:
            yield _about(change, change.type.value, "; ".join(other))
    known = {(problem.source, problem.detail) for problem in before.survey.problems}
    for problem in after.survey.problems:
        if (problem.source, problem.detail) not in known:
            yield _event("problem", f"{problem.source}: {problem.detail}")


def _evidence(change: Change) -> list[str]:
    return [condition.evidence for condition in change.device.conditions if condition.evidence]


def _about(change: Change, kind_of_event: str, detail: str) -> WatchEvent:
    device = change.device
    return WatchEvent(
        at=time.time(),
        type=kind_of_event,
        detail=detail,
        device=device.id,
        kind=device.kind,
        name=device.name,
        node=device.location.node,
        health=device.health,
        presence=device.presence,
    )


def _event(kind_of_event: str, detail: str) -> WatchEvent:
    return WatchEvent(at=time.time(), type=kind_of_event, detail=detail)


def _first(seen: Look, bell: Bell) -> WatchEvent:
    return _event("watching", f"{counted(len(seen.devices), 'device')}; {bell.describe()}")


def _say(event: WatchEvent, options: Options, style: Style) -> None:
    if options.format == "json":
        say(encode(event, pretty=False).decode() + "\n")
        return
    clock = time.strftime("%H:%M:%S", time.localtime(event.at))
    who = f"{event.node}/{event.name} " if event.name is not None else ""
    health = f" [{event.health}]" if event.health is not None and event.type != "removed" else ""
    word = style.paint(f"{event.type:<9}", _COLOURS.get(event.type, ""))
    say_lines([f"{clock}  {word}  {clean(who + event.detail + health)}"])
