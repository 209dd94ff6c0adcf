"""Machines and what is held on them, without leases or tenants: all that the allocator looks at."""

from __future__ import annotations

from hal.broker.allocation.view import Place, allocate, given
from hal.broker.index import DeviceIndex
from hal.broker.snapshot import Cordon


class Floor(DeviceIndex):
    """An index whose holders are names."""

    def __init__(self, devices=()):
        super().__init__()
        self.leases = {}
        for device in devices:
            self.place(device)
        self.settle()

    def held(self, device_id):
        return [given for devices in self.leases.values() for given in devices if given.id == device_id]

    def grant(self, claim, **fields):
        found = allocate(self, claim, **fields)
        assert isinstance(found, Place), found
        return self.take(claim.id, given(found))

    def take(self, name, devices):
        self.leases[name] = tuple(devices)
        self._take(name, devices)
        return tuple(devices)

    def give(self, name):
        self._give(name, self.leases.pop(name))

    def cordon(self, target):
        self._cordon(Cordon(target=target, why="test", by="test", at=0.0))

    def keep(self, name, devices):
        self._keep(name, devices)
