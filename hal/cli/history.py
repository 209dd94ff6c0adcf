"""The commands of ``hal`` that tell what happened: events, and the audit trail."""

from __future__ import annotations

import argparse
import select
import sys
import time
from typing import TYPE_CHECKING

import msgspec

from hal.cli.asking import local_time, localized, open_any, print_json
from hal.errors import UsageError
from hal.interfaces.deadline import Deadline
from hal.model.words import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hal.broker.journal.audit import Anchor, AuditLine, AuditReport
    from hal.cli.asking import AnyBroker
    from hal.model.event import Event

_LOOK_SECONDS = 1.0
_STREAM_SECONDS = 5.0
"""How long a stream is read before it is looked whether anybody still reads us."""


def do_events(options: argparse.Namespace) -> int:
    """``hal events``; with ``--follow`` it goes on until it is stopped, with ``--for`` until that time is over."""
    from hal.api.client import Client

    since: int = options.since
    follow = options.follow or options.for_seconds is not None
    deadline = Deadline.never() if options.for_seconds is None else Deadline.after(options.for_seconds)
    while True:
        with open_any(options) as broker:
            for event in broker.events(since, options.tenant):
                since = event.revision
                _print(event, options.json)
            while follow and isinstance(broker, Client) and not deadline.expired:
                some = Deadline.after(min(_STREAM_SECONDS, deadline.remaining_seconds))
                for event in broker.watch(since, some, options.tenant):
                    since = event.revision
                    _print(event, options.json)
                _check_reader()
        _check_reader()
        if not follow or deadline.expired:
            return 0
        time.sleep(min(_LOOK_SECONDS, deadline.remaining_seconds))  # others need the journal, too


def _check_reader() -> None:
    """Raise ``BrokenPipeError`` if whoever read us has gone: where nothing happens no write would tell."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        found = poll.poll(0)
    except (OSError, ValueError):  # no file: the output is kept in memory
        return
    if any(flags & select.POLLERR for _, flags in found):
        raise BrokenPipeError


def _print(event: Event, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(msgspec.json.encode(event).decode() + "\n")
    else:
        line = f"{event.revision:>6}  {local_time(event.at)}  {event.type.value:<10} {event.subject}"
        print(f"{line}  {localized(event.detail)}".rstrip())
    sys.stdout.flush()


def do_audit(options: argparse.Namespace) -> int:
    """``hal audit``: exit code 1 if the trail was tampered with."""
    with open_any(options) as broker:
        if options.verify or options.anchor is not None:
            report = _verify(broker, _anchor(options.anchor))
            if options.json:
                print_json(report)
            elif report.ok:
                head = f"{report.head.sequence}:{report.head.hash}"
                print(f"{counted(report.lines, 'line')}, none changed, dropped or put in; remember {head}")
            else:
                print(f"the trail is broken at line {report.broken}: {report.why}")
            return 0 if report.ok else 1
        for line in _lines(broker, options.since):
            if options.json:
                sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
                continue
            who = f"{line.sequence:>6}  {local_time(line.at)}  {line.actor:<12} {line.verb:<10}"
            print("  ".join(word for word in (f"{who} {line.subject}", line.tenant, localized(line.detail)) if word))
    return 0


def _lines(broker: AnyBroker, since: int) -> Iterator[AuditLine]:
    from hal.api.client import Client
    from hal.broker.journal.store import read_trail

    return broker.audit(since) if isinstance(broker, Client) else read_trail(broker.ledger.store, since)


def _verify(broker: AnyBroker, anchor: Anchor | None) -> AuditReport:
    from hal.api.client import Client

    return broker.verify_audit(anchor) if isinstance(broker, Client) else broker.ledger.store.verify_audit(anchor)


def _anchor(text: str | None) -> Anchor | None:
    from hal.broker.journal.audit import Anchor

    if text is None:
        return None
    number, _, digest = text.partition(":")
    if not (number.isascii() and number.isdecimal() and len(digest) == 64):
        raise UsageError(f"{text[:80]!r} is no anchor", during="audit", hint="LINE:HASH, from hal audit --verify")
    return Anchor(int(number), digest)
