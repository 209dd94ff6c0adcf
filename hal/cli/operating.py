"""The commands of ``hal`` for operators: cordon, drain, tenants and their quotas."""

from __future__ import annotations

import argparse
import getpass
from typing import TYPE_CHECKING, Any

import msgspec

from hal.cli.asking import now_of, open_any, print_json
from hal.cli.leases import print_lease
from hal.errors import UsageError
from hal.model.tenant import Tenant
from hal.model.words import counted

if TYPE_CHECKING:
    from hal.api.surface import TenantReport
    from hal.broker.snapshot import Cordon

_SAID = ("weight", "guarantee", "quota", "most_claims", "most_waiting", "claims_per_second")


def _me() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "operator"


def do_cordon(options: argparse.Namespace) -> int:
    """``hal cordon``; without a target it lists what is cordoned."""
    if options.target is None and options.why:
        raise UsageError("what is to be cordoned?", during="cordon", hint="hal cordon gpu0 --why TEXT")
    with open_any(options) as broker:
        cordons = broker.cordons() if options.target is None else broker.cordon(options.target, options.why, _me())
    return _show_cordons(options, cordons)


def do_uncordon(options: argparse.Namespace) -> int:
    """``hal uncordon``."""
    with open_any(options) as broker:
        cordons = broker.uncordon(options.target, _me())
    return _show_cordons(options, cordons)


def _show_cordons(options: argparse.Namespace, cordons: tuple[Cordon, ...]) -> int:
    if options.json:
        print_json({"cordons": cordons})
        return 0
    for one in cordons:
        why = f": {one.why}" if one.why else ""
        print(f"{one.target}  {'draining' if one.draining else 'cordoned'} by {one.by}{why}")
    if not cordons:
        print("nothing is cordoned")
    return 0


def do_drain(options: argparse.Namespace) -> int:
    """``hal drain``: the leases whose holders were told to leave."""
    with open_any(options) as broker:
        leases = broker.drain(options.target, options.why, _me(), options.grace)
        now = now_of(broker)
    if options.json:
        print_json({"leases": leases})
        return 0
    for lease in leases:
        print_lease(lease, now)
    if not leases:
        print("nobody holds anything there; it is cordoned")
    return 0


def do_tenants(options: argparse.Namespace) -> int:
    """``hal tenants``."""
    with open_any(options) as broker:
        reports = broker.tenants(options.tenant)
    if options.json:
        print_json({"tenants": reports})
        return 0
    for report in reports:
        _print_tenant(report)
    if not reports:
        print("no tenants")
    return 0


def _number(amount: float) -> str:
    return str(int(amount)) if amount == int(amount) else f"{amount:.3f}".rstrip("0")


def _print_tenant(report: TenantReport) -> None:
    said = report.tenant
    parts = [f"weight {said.weight}"]
    for name, amounts in (("uses", report.uses), ("guarantee", said.guarantee), ("quota", said.quota)):
        if amounts:
            parts.append(f"{name} " + " ".join(f"{kind}={_number(amount)}" for kind, amount in sorted(amounts.items())))
    parts.append(counted(report.leases, "lease"))
    if report.waiting:
        parts.append(f"{report.waiting} waiting")
    parts.append(f"share {report.dominant_share:.3f} of {report.fair_share:.3f}")
    for name in ("most_claims", "most_waiting", "claims_per_second"):
        limit = getattr(said, name)
        if limit is not None:
            parts.append(f"{name.replace('_', ' ')} {limit:g}")
    print(f"{said.path or '(everybody)'}  {', '.join(parts)}")


def do_quotas(options: argparse.Namespace) -> int:
    """``hal quotas``: what is not said stays as it was."""
    said: dict[str, Any] = {name: getattr(options, name) for name in _SAID if getattr(options, name) is not None}
    for name in ("guarantee", "quota"):
        if name in said:
            said[name] = dict(said[name])
    if options.forget and said:
        raise UsageError("--forget and something to remember", during="quotas", hint="one of them")
    with open_any(options) as broker:
        if options.forget:
            broker.remove_tenant(options.tenant)
            if options.json:
                print_json({"forgotten": options.tenant})
            else:
                print(f"{options.tenant}  nothing is said about it any more")
            return 0
        known = next((one for one in broker.tenants(options.tenant) if one.tenant.path == options.tenant), None)
        tenant = known.tenant if known is not None else Tenant(path=options.tenant)
        if said:
            known = broker.set_tenant(msgspec.structs.replace(tenant, **said))
    if options.json:
        print_json(known if known is not None else {"tenant": tenant})
    elif known is not None:
        _print_tenant(known)
    else:
        print(f"{options.tenant}  nothing was said about it")
    return 0
