"""Asking the broker: the server's if one answers, else one that is opened for this command alone."""

from __future__ import annotations

import argparse
import re
import sys
import time
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import msgspec

from hal.model.words import counted

if TYPE_CHECKING:
    from hal.api.client import Client
    from hal.api.local import LocalBroker

    AnyBroker = Client | LocalBroker


def open_any(options: argparse.Namespace, *, quiet: bool = False) -> AnyBroker:
    """Open the broker as the options of every command say.

    What could not be looked at is said on standard error, unless that has been done or will be (``quiet``).
    """
    from hal.api.connect import connect

    broker = connect(state=options.state, deadline_seconds=options.wait)
    told = () if quiet else getattr(broker, "problems", ())  # of the one in this process; a server has its own log
    for problem in told:
        hint = f" (try: {problem.hint})" if problem.hint else ""
        print(f"hal: {problem.source} during {problem.step}: {problem.detail}{hint}", file=sys.stderr)
    return broker


_AHEAD: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
_EPOCH = re.compile(r"\b(until|from) (\d{9,11}\.\d{3})(?![\d.])")


def now_of(broker: AnyBroker) -> float:
    """Return the time by the broker's clock, as near as it can be known from here; a server is asked once."""
    if not _is_served(broker):
        return broker.now()
    if broker not in _AHEAD:
        said = broker.now() or time.time()  # a server of an older version does not say
        _AHEAD[broker] = said - time.monotonic()
    return time.monotonic() + _AHEAD[broker]


def time_there(options: argparse.Namespace) -> float:
    """Return the time by the clock of the broker that the options name."""
    with open_any(options, quiet=True) as broker:
        return now_of(broker)


def _is_served(broker: AnyBroker) -> bool:
    from hal.api.client import Client

    return isinstance(broker, Client)


def print_json(value: Any) -> None:
    """Print a value for programs."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def when(at: float, now: float) -> str:
    """Return a time for people: soon in seconds, later by the clock."""
    left = at - now
    if left < 600:
        return f"in {max(0.0, left):.0f} s"
    return time.strftime("%H:%M:%S", time.localtime(at)) if left < 43_200 else local_time(at)


def local_time(at: float) -> str:
    """Return a time of the Unix epoch in the words of ISO 8601, in local time, to the second."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    except (OverflowError, ValueError, OSError):  # the journal can be older than what it says
        return f"{at:.0f}"


def localized(detail: str) -> str:
    """Return what an event says, with its times of the Unix epoch in local time."""
    return _EPOCH.sub(lambda found: f"{found[1]} {local_time(float(found[2]))}", detail)


def span(seconds: float) -> str:
    """Return how long something lasts, roughly: ``90 s``, ``12 min``, ``7 h``, ``3 days``."""
    for most, unit, name in ((600, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < most:
            return f"{max(0.0, seconds) / unit:.0f} {name}"
    return counted(round(seconds / 86_400), "day")
