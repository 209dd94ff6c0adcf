"""The commands of ``hal``. Each opens the broker, does one thing, and closes it again."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from hal.api.local import LocalBroker
from hal.api.opening import open_broker
from hal.cli.abilities import abilities
from hal.cli.claims import claim_of
from hal.drivers.guarded import describe
from hal.errors import HalError
from hal.model.lease import Lease

if TYPE_CHECKING:
    from hal.api.held import HeldLease


def open_local(options: argparse.Namespace) -> LocalBroker:
    """Open the broker as the options of every command say; what could not be looked at is said on standard error."""
    broker = open_broker(state=options.state, deadline_seconds=options.wait)
    for problem in broker.problems:
        hint = f" (try: {problem.hint})" if problem.hint else ""
        print(f"hal: {problem.source} during {problem.step}: {problem.detail}{hint}", file=sys.stderr)
    return broker


def print_json(value: Any) -> None:
    """Print a value for programs."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def _left(lease: Lease, now: float) -> str:
    seconds = lease.expires_at - now
    return f"{seconds:.0f} s left" if seconds < 600 else f"{seconds / 60:.0f} min left"


def _print_lease(lease: Lease, now: float) -> None:
    print(f"lease {lease.id}  {lease.state.value}  tenant {lease.tenant}  fence {lease.fence}  {_left(lease, now)}")
    for device in lease.devices:
        print(f"  {device.request:<10} {device.node}/{device.name:<12} {device.id}")


def quoted(value: str) -> str:
    """Return a value for sh, bash and zsh alike: zsh takes ``=word`` and ``~`` for names to look up."""
    plain = value.isascii() and all(letter.isalnum() or letter in "_,./:@+-" for letter in value)
    return value if value and plain else "'" + value.replace("'", "'\\''") + "'"


def do_claim(options: argparse.Namespace) -> int:
    """``hal claim``."""
    wanted = claim_of(options)
    with open_local(options) as broker:
        held = broker.claim(wanted)
        if options.json:
            print_json({"lease": held.lease, "ticket": held.ticket(), "environment": held.env()})
        else:
            _print_lease(held.lease, broker.ledger.clock.now())
            print(
                f'use it: eval "$(hal env {shlex.quote(held.id)})"    give it back: hal release {shlex.quote(held.id)}'
            )
    return 0


def do_open(options: argparse.Namespace) -> int:
    """``hal open``: open the devices of a lease in this process and show what each can do."""
    with open_local(options) as broker:
        held = broker.get(options.lease)
    devices = [held.find(options.device)] if options.device else list(held.devices)
    rows = [_look(held, device.id) for device in devices]
    if options.json:
        print_json({"lease": held.id, "devices": rows})
    else:
        for row in rows:
            print(f"{row['name']}  {row['id']}  {'open' if row['error'] is None else 'failed: ' + row['error']}")
            for group, names in row["can"].items():
                print(f"  {group:<18} {', '.join(names)}")
            for name, value in row["telemetry"].items():
                print(f"  {name:<36} {value}")
    return 0 if all(row["error"] is None for row in rows) else 1


def _look(held: HeldLease, device_id: str) -> dict[str, Any]:
    row: dict[str, Any] = {"id": device_id, "name": held.find(device_id).name, "can": {}, "telemetry": {}}
    row["error"] = None
    try:
        with held.open(device_id) as handle:
            row["can"] = abilities(handle, held.find(device_id).kind)
            for name, fact in handle.telemetry().items():
                row["telemetry"][name] = fact.value if fact.known else f"({fact.absent})"
    except HalError as error:
        row["error"] = str(error)
    except Exception as error:  # a guard: a driver's code
        row["error"] = f"{held.find(device_id).driver}: {describe(error)} (try: report it to the plugin)"
    return row


def do_env(options: argparse.Namespace) -> int:
    """``hal env``: print the lease's environment for a POSIX shell."""
    with open_local(options) as broker:
        held = broker.get(options.lease)
        variables = held.env()
    if options.json:
        print_json(variables)
    else:
        for name, value in variables.items():
            print(f"export {name}={quoted(value)}")
    return 0


def do_renew(options: argparse.Namespace) -> int:
    """``hal renew``."""
    return _with_lease(options, lambda broker: broker.renew(options.lease, options.ttl, options.tenant))


def do_release(options: argparse.Namespace) -> int:
    """``hal release``."""
    return _with_lease(options, lambda broker: broker.release(options.lease, options.tenant))


def _with_lease(options: argparse.Namespace, work: Callable[[LocalBroker], Lease]) -> int:
    with open_local(options) as broker:
        lease = work(broker)
        fenced = {name: held.why for name, held in broker.state.fenced.items() if held.lease == lease.id}
        if options.json:
            print_json({"lease": lease, "fenced": fenced})
            return 0
        if lease.why_ended:
            print(f"lease {lease.id}  {lease.state.value}: {lease.why_ended}")
        else:
            _print_lease(lease, broker.ledger.clock.now())
        for name, why in fenced.items():
            print(f"  {name} stays fenced: {why}")
    return 0


def do_list(options: argparse.Namespace) -> int:
    """``hal list``."""
    with open_local(options) as broker:
        leases = broker.list(options.tenant)
        if options.json:
            print_json({"leases": leases})
            return 0
        for lease in leases:
            _print_lease(lease, broker.ledger.clock.now())
        if not leases:
            print("no leases")
    return 0


def do_events(options: argparse.Namespace) -> int:
    """``hal events``."""
    with open_local(options) as broker:
        for event in broker.events(options.since):
            if options.json:
                sys.stdout.write(msgspec.json.encode(event).decode() + "\n")
            else:
                at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at))
                print(f"{event.revision:>6}  {at}  {event.type.value:<10} {event.subject}  {event.detail}")
    return 0
