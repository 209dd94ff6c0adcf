"""Which hardware a driver can drive, as a table that can be read without loading the driver."""

from __future__ import annotations

import msgspec

from hal.model.kind import Kind


class Match(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One row: all fields that are set must fit.

    PCI fields are four hexadecimal digits (``10de``); ``pci_class`` is a prefix of the six-digit class code
    (``0302`` fits ``030200``). ``subsystem`` is a folder of sysfs that must not be empty (``class/infiniband``,
    ``bus/nd/devices``). ``environment`` is a variable that must be set. ``model`` names what was matched, for people.
    """

    kind: Kind | None = None
    pci_vendor: str = ""
    pci_devices: tuple[str, ...] = ()
    pci_class: str = ""
    subsystem: str = ""
    environment: str = ""
    model: str = ""

    def fits_pci(self, vendor: str, device: str, class_code: str) -> bool:
        """True if the row speaks of PCI functions and this one fits."""
        if not (self.pci_vendor or self.pci_devices or self.pci_class):
            return False
        return (
            (not self.pci_vendor or vendor == self.pci_vendor)
            and (not self.pci_devices or device in self.pci_devices)
            and class_code.startswith(self.pci_class)
        )
