"""The commands of ``hal``. Each opens the broker, does one thing, and closes it again."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from hal.cli.abilities import abilities
from hal.cli.asking import local_time, now_of, open_any, print_json, span, when
from hal.cli.claims import claim_of
from hal.cli.waiting import wait_in_queue
from hal.drivers.guarded import describe
from hal.errors import ClaimRefused, HalError
from hal.model.claim import Preempt
from hal.model.lease import Lease

if TYPE_CHECKING:
    from hal.api.held import HeldLease
    from hal.broker.command import Answer
    from hal.cli.asking import AnyBroker
    from hal.model.claim import Claim


def print_lease(lease: Lease, now: float) -> None:
    """Print a lease with its devices for people."""
    left = f"{span(lease.expires_at - now)} left" if lease.expires_at > now else "expired"
    print(f"lease {lease.id}  {lease.state.value}  tenant {lease.tenant}  fence {lease.fence}  {left}")
    for device in lease.devices:
        which = f"  replica {device.replica}" if lease.elastic is not None or lease.replicas > 1 else ""
        print(f"  {device.request:<10} {device.node}/{device.name:<12} {device.id}{which}")
    if lease.why_ended:
        print(f"  {lease.why_ended}")
    elif lease.leave_by:
        whole = len(lease.leaving) in (0, lease.replicas)
        told = "told to leave" if whole else f"{_replicas(lease.leaving)} told to leave"
        within = span(lease.leave_by - now)
        print(f"  {told} within {within}, by {local_time(lease.leave_by)}{f': {lease.notice}' if lease.notice else ''}")


def _replicas(numbers: tuple[int, ...]) -> str:
    return f"replica{'s' * (len(numbers) > 1)} {', '.join(map(str, sorted(numbers)))}"


def quoted(value: str) -> str:
    """Return a value for sh, bash and zsh alike: zsh takes ``=word`` and ``~`` for names to look up."""
    plain = value.isascii() and all(letter.isalnum() or letter in "_,./:@+-" for letter in value)
    return value if value and plain else "'" + value.replace("'", "'\\''") + "'"


def do_claim(options: argparse.Namespace) -> int:
    """``hal claim``."""
    wanted = claim_of(options)
    if options.dry_run:
        return _dry_run(options, wanted)
    if wanted.start_at is not None and not wanted.wait:
        return _reserve(options, wanted)
    if wanted.wait or wanted.preempt is not Preempt.NEVER:  # making room takes time, too
        lease_id = wait_in_queue(options, wanted)
        with open_any(options) as broker:
            return _show_claim(options, broker, broker.get(lease_id))
    with open_any(options) as broker:
        return _show_claim(options, broker, broker.claim(wanted))


def _reserve(options: argparse.Namespace, wanted: Claim) -> int:
    """Say what is kept for later, and do not wait for it."""
    from hal.broker.command import Granted, Queued

    with open_any(options) as broker:
        answer = broker.submit([wanted])[0]
        if isinstance(answer, Granted):  # its time has come already
            return _show_claim(options, broker, broker.get(wanted.id))
        if not isinstance(answer, Queued):
            why = getattr(answer, "reason", "undecided: the search was given up")
            raise ClaimRefused(why, device=wanted.id, during="claim", hint="hal explain, with the same words")
        starts_at = answer.starts_at if answer.starts_at is not None else wanted.start_at
        if options.json:
            print(msgspec.json.encode({"id": wanted.id, "starts_at": starts_at}).decode())
        else:
            print(f"reserved {wanted.id}, {when(starts_at or 0.0, now_of(broker))}")
            print(f"see it: hal queue    have it when it starts: hal list    give it up: hal release {wanted.id}")
    return 0


def _show_claim(options: argparse.Namespace, broker: AnyBroker, held: HeldLease) -> int:
    if options.json:
        print_json({"lease": held.lease, "ticket": held.ticket(), "environment": held.env()})
        return 0
    print_lease(held.lease, now_of(broker))
    print(f'use it: eval "$(hal env {shlex.quote(held.id)})"    give it back: hal release {shlex.quote(held.id)}')
    return 0


def _dry_run(options: argparse.Namespace, wanted: Claim) -> int:
    from hal.broker.command import Granted, Queued, Refused

    with open_any(options) as broker:
        answer: Answer = broker.submit([wanted], dry_run=True)[0]
    if options.json:
        print_json({"answer": answer})
    elif isinstance(answer, Granted):
        print("it would be granted: " + ", ".join(f"{one.node}/{one.name}" for one in answer.lease.devices))
    elif isinstance(answer, Queued):
        print(f"it would wait at position {answer.position} of the queue{f': {answer.why}' if answer.why else ''}")
    elif isinstance(answer, Refused):
        raise ClaimRefused(answer.reason, device=wanted.id, during="claim", hint="hal explain, with the same words")
    else:
        print("undecided: the search was given up")
    return 0 if isinstance(answer, Granted | Queued) else 1


def do_open(options: argparse.Namespace) -> int:
    """``hal open``: open the devices of a lease in this process and show what each can do."""
    with open_any(options) as broker:
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
    with open_any(options) as broker:
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


def do_resize(options: argparse.Namespace) -> int:
    """``hal resize``."""
    return _with_lease(options, lambda broker: broker.resize(options.lease, options.replicas, options.tenant))


def _with_lease(options: argparse.Namespace, work: Callable[[AnyBroker], Lease]) -> int:
    with open_any(options) as broker:
        lease = work(broker)
        fenced = {one.device.id: one.why for one in broker.status().fenced if one.lease == lease.id}
        if options.json:
            print_json({"lease": lease, "fenced": fenced})
            return 0
        if lease.why_ended:
            print(f"lease {lease.id}  {lease.state.value}: {lease.why_ended}")
        else:
            print_lease(lease, now_of(broker))
        for name, why in fenced.items():
            print(f"  {name} stays fenced: {why}")
    return 0


def do_list(options: argparse.Namespace) -> int:
    """``hal list``."""
    with open_any(options) as broker:
        leases = broker.list(options.tenant)
        if options.json:
            print_json({"leases": leases})
            return 0
        for lease in leases:
            print_lease(lease, now_of(broker))
        if not leases:
            print("no leases")
    return 0
