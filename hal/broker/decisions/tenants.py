"""Decisions about tenants: what each may have."""

from __future__ import annotations

from hal.broker import command as c
from hal.broker import record as r
from hal.broker.decisions.devices import Decision
from hal.broker.state import State
from hal.errors import UsageError
from hal.model.tenant import Tenant

LONGEST_PATH = 128
MOST_WEIGHT = 1_000_000


def set_tenant(state: State, command: c.SetTenant, now: float) -> Decision:
    """Write down what a tenant may have; the same again is no change."""
    tenant = command.tenant
    _check(tenant)
    if state.tenants.get(tenant.path) == tenant:
        return [], c.Done()
    return [r.TenantSet(at=now, tenant=tenant)], c.Done()


def remove_tenant(state: State, command: c.RemoveTenant, now: float) -> Decision:
    """Forget what was said about a tenant; the same again is no error."""
    if command.path not in state.tenants:
        return [], c.Done()
    return [r.TenantRemoved(at=now, path=command.path)], c.Done()


def _check(tenant: Tenant) -> None:
    def refuse(what: str) -> UsageError:
        return UsageError(what, device=tenant.path[:LONGEST_PATH] or "root", during="set tenant", hint="hal quotas")

    words = tenant.path.split("/") if tenant.path else []
    if len(tenant.path) > LONGEST_PATH or not tenant.path.isprintable() or "" in words:
        raise refuse(f"the path is not up to {LONGEST_PATH} printable characters, as org/team/user")
    if not _is_whole(tenant.weight, 1, MOST_WEIGHT):
        raise refuse(f"weight is {tenant.weight!r}, it must be a whole number from 1 to {MOST_WEIGHT}")
    for name in ("guarantee", "quota"):
        for resource, amount in getattr(tenant, name).items():
            if not isinstance(resource, str) or not _is_whole(amount, 0, 1 << 62):
                raise refuse(f"the {name} of {resource!r} is {amount!r}, it must be a whole number")
    for resource, amount in tenant.guarantee.items():
        quota = tenant.quota.get(resource)
        if quota is not None and amount > quota:
            raise refuse(f"the guarantee of {resource} is above its quota")
    for name in ("most_claims", "most_waiting"):
        value = getattr(tenant, name)
        if value is not None and not _is_whole(value, 0, 1 << 62):
            raise refuse(f"{name} is {value!r}, it must be a whole number")
    rate = tenant.claims_per_second
    if rate is not None and not (isinstance(rate, int | float) and not isinstance(rate, bool) and 0 < rate < 1e9):
        raise refuse(f"claims_per_second is {rate!r}, it must be above 0")


def _is_whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
