"""The devices of one node as holders get them, made once: the same choice is the same tuple, known when it returns."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from hal.model.device import Device
from hal.model.lease import AllocatedDevice

REMEMBERED = 64


class Handout:
    """What was given of the ``devices`` of the node ``name``, by position."""

    __slots__ = ("_devices", "_given", "_masked", "devices", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.devices: list[Device] = []
        self._forget()

    def _forget(self) -> None:
        self._devices: dict[tuple[int, str], AllocatedDevice] = {}
        self._given: dict[object, tuple[AllocatedDevice, ...]] = {}
        self._masked: dict[int, tuple[tuple[AllocatedDevice, ...], int]] = {}

    def knows(self, devices: Sequence[AllocatedDevice]) -> bool:
        """True if these very devices were given here: whole ones of this node, as it is now."""
        known = self._masked.get(id(devices))
        return known is not None and known[0] is devices

    def given(
        self, order: tuple[tuple[int, ...], ...], requests: tuple[str, ...], replica: int = 0
    ) -> tuple[AllocatedDevice, ...]:
        """Return the devices of each request as a holder gets them, held alone, in the order of their positions.

        The same choice is the same tuple.
        """
        if replica:
            return self._allocated(order, requests, replica)
        key = (order, requests)
        found = self._given.get(key)
        if found is None:
            if len(self._given) >= REMEMBERED // 4:
                self._given.clear()
                self._masked.clear()
            known = self._devices
            found = self._given[key] = tuple(
                [
                    known.get((position, request)) or self.allocated(position, request)
                    for positions, request in zip(order, requests, strict=True)
                    for position in positions
                ]
            )
            mask = 0
            for positions in order:
                for position in positions:
                    mask |= 1 << position
            self._masked[id(found)] = (found, mask)
        return found

    def _allocated(
        self, order: tuple[tuple[int, ...], ...], requests: tuple[str, ...], replica: int
    ) -> tuple[AllocatedDevice, ...]:
        return tuple(
            [
                self.allocated(position, request, replica)
                for positions, request in zip(order, requests, strict=True)
                for position in positions
            ]
        )

    def allocated(self, position: int, request: str, replica: int = 0) -> AllocatedDevice:
        """Return one device as a holder gets it, held alone."""
        key = (position, request)
        found = self._devices.get(key)
        if found is None:
            device = self.devices[position]
            if len(self._devices) >= REMEMBERED:
                self._devices.clear()
            found = self._devices[key] = AllocatedDevice(
                id=device.id,
                kind=device.kind,
                name=device.name,
                node=self.name,
                driver=device.driver,
                request=request,
                vendor=str(device.value("vendor") or ""),
                aliases=device.aliases,
            )
        if replica:
            return replace(found, replica=replica)
        return found
