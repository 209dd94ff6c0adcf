"""What operators do: look at devices, mend them, keep them back, say what tenants may have."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

from hal.agent.prepare import Agent
from hal.agent.repair import RESET_SECONDS, Repair, repair
from hal.api.glance import tenants_of
from hal.api.sight import Observe, Sight, readable
from hal.api.surface import TenantReport
from hal.broker import command as c
from hal.broker.allocation.places import ancestors, why_unfit
from hal.broker.index import NODE
from hal.broker.ledger import Ledger
from hal.broker.snapshot import Cordon
from hal.broker.state import State
from hal.drivers.contract import Problem
from hal.errors import UsageError
from hal.model.device import Device
from hal.model.inventory import Inventory
from hal.model.lease import Lease
from hal.model.tenant import Tenant


class Operating(ABC):
    """The half of :class:`hal.api.local.LocalBroker` that is about devices and tenants."""

    ledger: Ledger
    agent: Agent

    def __init__(self, observe: Observe | None) -> None:
        self.observe = observe
        self.problems: tuple[Problem, ...] = ()
        self._looking = threading.Lock()

    @property
    def state(self) -> State:
        """The state as it is now; look, do not touch."""
        return self.ledger.state

    @abstractmethod
    def maintain(self) -> float:
        """Do what time asks for; see :class:`hal.api.local.LocalBroker`."""

    # --- devices

    def devices(self) -> tuple[Device, ...]:
        """Return all devices as they were last seen."""
        with self.ledger.lock:
            return tuple(self.state.devices.values())

    def refresh(self) -> None:
        """Look at all devices again, and try to free those that did not let go."""
        if self.observe is None:
            return
        with self._looking:
            seen = self.observe()
            sight = seen if isinstance(seen, Sight) else Sight(devices=tuple(seen))
            self.problems = sight.problems
            devices = tuple(readable(sight.devices, self.state.devices))
            self.ledger.execute(c.Observe(devices=devices, complete=True, silent=sight.silent))
            with self.ledger.lock:
                self.state.settle()  # or the next claim would wait for it
        self.agent.free_fenced()

    def refresh_if_possible(self) -> bool:
        """Look again; False if this broker has no eyes of its own."""
        self.refresh()
        return self.observe is not None

    def repair(
        self,
        device: str,
        *,
        scrub: bool = False,
        by_operator: str | None = None,
        deadline_seconds: float = RESET_SECONDS,
    ) -> Repair:
        """Repair a device that nobody holds, by id, name or alias: reset it, look at it, clear its latched evidence.

        ``scrub`` erases it, too. ``by_operator`` says what a person did about it: that is recorded, and nothing is
        reset. See :func:`hal.agent.repair.repair` for what it raises.
        """
        if by_operator is not None and not by_operator.strip():
            raise UsageError("an operator's word says what was done", device=device, during="repair", hint="a reason")
        self.agent.expire()
        found = self._inventory().find(device)
        steps = repair(self.agent, found, scrub=scrub, by_operator=by_operator, seconds=deadline_seconds)
        self.refresh()
        now = self.state.devices.get(found.id)
        left = {(condition.type, condition.code) for condition in now.conditions} if now is not None else set()
        return Repair(
            device=found.id,
            name=found.name,
            steps=steps,
            cleared=tuple(gone for gone in found.conditions if (gone.type, gone.code) not in left),
            unfit=None if now is None else why_unfit(now, ancestors(now, self.state.devices)),
        )

    def cordon(self, target: str, why: str = "", by: str = "operator") -> tuple[Cordon, ...]:
        """Keep a device (id, name, alias) or a node from new leases; leases go on. Returns all cordons."""
        self.ledger.execute(c.SetCordon(target=self._target(target), why=why, by=by), by)
        return self.cordons()

    def uncordon(self, target: str, by: str = "operator") -> tuple[Cordon, ...]:
        """Take a cordon back; the same again is no error."""
        wanted = target if target in self.state.cordons else self._target(target)
        self.ledger.execute(c.LiftCordon(target=wanted, by=by), by)
        self.maintain()
        return self.cordons()

    def drain(
        self, target: str, why: str = "", by: str = "operator", grace_seconds: float | None = None
    ) -> tuple[Lease, ...]:
        """Cordon, and tell every holder to leave within their grace; return the leases concerned."""
        command = c.SetCordon(target=self._target(target), why=why, by=by, drain=True, grace_seconds=grace_seconds)
        answer = self.ledger.execute(command, by)
        assert isinstance(answer, c.Done)
        self.maintain()
        return tuple(self.state.leases.get(lease.id, lease) for lease in answer.leases)

    def cordons(self) -> tuple[Cordon, ...]:
        """Return what is kept from new leases, by whom and why."""
        with self.ledger.lock:
            return tuple(self.state.cordons.values())

    def _target(self, text: str) -> str:
        """Return what a cordon is about: a machine by its name, else a device by any of its names."""
        bare = text.removeprefix(NODE)
        if self.state.node(bare) is not None:
            return NODE + bare
        return self._inventory().find(text).id

    def _inventory(self) -> Inventory:
        with self.ledger.lock:
            return Inventory(self.state.devices.values())

    # --- tenants

    def tenants(self, tenant: str | None = None) -> tuple[TenantReport, ...]:
        """Return every tenant at or below ``tenant`` with what it uses."""
        with self.ledger.lock:
            return tenants_of(self.state, tenant)

    def set_tenant(self, tenant: Tenant, by: str = "operator") -> TenantReport:
        """Say what a tenant may have, from now on."""
        self.ledger.execute(c.SetTenant(tenant=tenant), by)
        self.maintain()
        return next(report for report in self.tenants(tenant.path) if report.tenant.path == tenant.path)

    def remove_tenant(self, path: str, by: str = "operator") -> None:
        """Forget what was said about a tenant; its leases go on."""
        self.ledger.execute(c.RemoveTenant(path=path), by)
