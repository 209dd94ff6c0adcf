"""NVIDIA's XID codes as data: what each one means for the device, and whose fault it is.

The driver's own recommendation (NVML field ``GPU_RECOVERY_ACTION``) comes first wherever it can be read; this table is
what remains when it cannot. Codes and meanings: NVIDIA's "XID Errors" guide and the immediate actions of its catalogue.
No single code condemns a board: that takes a repair that did not help, or a failed diagnostic.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from hal.model.health import Action, Radius, Severity


class Blame(StrEnum):
    """Whose fault a code usually is."""

    APPLICATION = "application"
    HARDWARE = "hardware"
    FIRMWARE = "firmware"
    FABRIC = "fabric"
    NOBODY = "nobody"
    UNKNOWN = "unknown"


class Xid(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One code. ``ends_context`` means that the program that met it can do nothing more on the device."""

    code: int
    meaning: str
    severity: Severity
    action: Action
    blame: Blame
    radius: Radius = Radius.DEVICE
    ends_context: bool = False

    @property
    def loses_device(self) -> bool:
        """True if no call is answered any more, and a reset cannot change that."""
        return self.code == 79

    @property
    def needs_reset(self) -> bool:
        """True if no program runs until the device was reset (or worse)."""
        return self.severity in (Severity.CRITICAL, Severity.FATAL)


def _application(code: int, meaning: str, ends_context: bool = True) -> Xid:
    return Xid(
        code=code,
        meaning=meaning,
        severity=Severity.WARN,
        action=Action.RESTART_APP,
        blame=Blame.APPLICATION,
        ends_context=ends_context,
    )


def _reset(code: int, meaning: str, blame: Blame = Blame.HARDWARE, severity: Severity = Severity.CRITICAL) -> Xid:
    return Xid(code=code, meaning=meaning, severity=severity, action=Action.RESET, blame=blame, ends_context=True)


def _note(code: int, meaning: str, blame: Blame = Blame.NOBODY, severity: Severity = Severity.INFO) -> Xid:
    return Xid(code=code, meaning=meaning, severity=severity, action=Action.NONE, blame=blame)


def _fabric(code: int, meaning: str) -> Xid:
    return Xid(
        code=code,
        meaning=meaning,
        severity=Severity.CRITICAL,
        action=Action.DRAIN_RESET,
        blame=Blame.FABRIC,
        radius=Radius.LINK,
    )


XIDS: dict[int, Xid] = {
    xid.code: xid
    for xid in (
        _application(13, "graphics engine exception"),
        _application(31, "GPU memory page fault"),
        _application(32, "invalid or corrupted push buffer stream"),
        _application(43, "GPU stopped processing after a fault of the program"),
        _note(45, "channels removed, following another error", severity=Severity.WARN),
        _reset(46, "GPU stopped processing"),
        Xid(
            code=48,
            meaning="double-bit (uncorrectable) ECC error",
            severity=Severity.CRITICAL,
            action=Action.DRAIN_RESET,
            blame=Blame.HARDWARE,
            ends_context=True,
        ),
        _reset(62, "internal micro-controller halt"),
        _note(63, "row remapping or page retirement recorded", Blame.HARDWARE),
        _reset(64, "row remapping or page retirement failed to be recorded"),
        _application(69, "graphics engine class error"),
        Xid(
            code=74,
            meaning="NVLink error",
            severity=Severity.CRITICAL,
            action=Action.DRAIN_RESET,
            blame=Blame.FABRIC,
            radius=Radius.LINK,
        ),
        Xid(
            code=79,
            meaning="GPU has fallen off the bus",
            severity=Severity.FATAL,
            action=Action.REBOOT,
            blame=Blame.HARDWARE,
            ends_context=True,
        ),
        _note(92, "high rate of single-bit (corrected) ECC errors", Blame.HARDWARE),
        Xid(
            code=94,
            meaning="contained uncorrectable ECC error: only the program that met it is lost",
            severity=Severity.WARN,
            action=Action.RESTART_APP,
            blame=Blame.HARDWARE,
            ends_context=True,
        ),
        _reset(95, "uncontained uncorrectable ECC error: all programs are lost"),
        _reset(109, "context switch timeout", severity=Severity.FATAL),
        _reset(110, "security fault"),
        _reset(119, "GSP remote procedure call timeout", Blame.FIRMWARE, Severity.FATAL),
        _reset(120, "GSP error", Blame.FIRMWARE),
        _note(121, "C2C link corrected error", Blame.FABRIC),
        _reset(136, "link training failure"),
        _reset(140, "unrecovered ECC error"),
        _reset(143, "GPU initialisation failure"),
        *(
            _fabric(code, f"NVLink error ({part})")
            for code, part in enumerate(("SAW", "RLW", "TLW", "TREX", "NVLPW CTRL", "NETIR", "MSE"), 144)
        ),
        Xid(
            code=151,
            meaning="key rotation error: the virtual machine must restart",
            severity=Severity.CRITICAL,
            action=Action.REBOOT,
            blame=Blame.FIRMWARE,
            radius=Radius.NODE,
            ends_context=True,
        ),
        _note(154, "the driver's recovery action changed"),
        _reset(155, "NVLink: software-defined error", Blame.FABRIC),
        _reset(156, "resource retirement event"),
        _reset(158, "GPU fatal timeout"),
        _note(160, "channel retirement recorded", Blame.HARDWARE),
    )
}


def xid(code: int) -> Xid:
    """Return what a code means; one that the table does not know is DEGRADED and blamed on nobody known."""
    found = XIDS.get(code)
    if found is not None:
        return found
    return Xid(
        code=code,
        meaning="a code that the table does not know",
        severity=Severity.DEGRADED,
        action=Action.RESET,
        blame=Blame.UNKNOWN,
    )
