"""Asking the broker: the server's if one answers, else one that is opened for this command alone."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from hal.api.client import Client
    from hal.api.local import LocalBroker

    AnyBroker = Client | LocalBroker


def open_any(options: argparse.Namespace) -> AnyBroker:
    """Open the broker as the options of every command say; what could not be looked at is said on standard error."""
    from hal.api.connect import connect

    broker = connect(state=options.state, deadline_seconds=options.wait)
    for problem in getattr(broker, "problems", ()):  # of the one in this process; a server has its own log
        hint = f" (try: {problem.hint})" if problem.hint else ""
        print(f"hal: {problem.source} during {problem.step}: {problem.detail}{hint}", file=sys.stderr)
    return broker


def now_of(broker: AnyBroker) -> float:
    """Return the time by the broker's clock, as near as it can be known from here."""
    ledger = getattr(broker, "ledger", None)
    return time.time() if ledger is None else float(ledger.clock.now())


def print_json(value: Any) -> None:
    """Print a value for programs."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def when(at: float, now: float) -> str:
    """Return a time for people: soon in seconds, later by the clock."""
    left = at - now
    if left < 600:
        return f"in {max(0.0, left):.0f} s"
    return time.strftime("%H:%M:%S" if left < 43_200 else "%Y-%m-%d %H:%M:%S", time.localtime(at))
