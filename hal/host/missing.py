"""Why something could not be read: one reason for every way in which the kernel says no."""

from __future__ import annotations

import errno

import msgspec

from hal.model.attributes import Absence, Attribute

ABSENT_LINK = "hal-absent:"
"""A symbolic link to this and a reason stands, in a snapshot, for an attribute that could not be read."""


class Missing(msgspec.Struct, frozen=True):
    """Why nothing could be read."""

    reason: Absence
    detail: str = ""

    def attribute(self, source: str) -> Attribute:
        """Return the absent attribute that this amounts to."""
        return Attribute(source=source, absent=self.reason, detail=self.detail)


NOT_THERE = Missing(Absence.NOT_REPORTED)
EMPTY = Missing(Absence.NOT_REPORTED, "empty")
NOT_TEXT = Missing(Absence.MALFORMED, "not UTF-8")
OUTSIDE = Missing(Absence.MALFORMED, "a link leads out of the tree, or round in circles")
BY_ERRNO = {
    errno.ENOENT: NOT_THERE,
    errno.ENOTDIR: NOT_THERE,
    errno.EACCES: Missing(Absence.PERMISSION),
    errno.EPERM: Missing(Absence.PERMISSION),
    errno.EISDIR: Missing(Absence.MALFORMED, "a folder in place of the attribute"),
    errno.ENODEV: Missing(Absence.DEVICE_LOST),
    errno.ENXIO: Missing(Absence.DEVICE_LOST),
    errno.EAGAIN: Missing(Absence.TIMEOUT, "reading would block"),
    errno.ETIMEDOUT: Missing(Absence.TIMEOUT, "the kernel timed out"),
    errno.EINVAL: Missing(Absence.NOT_REPORTED, "not valid in the device's present state"),
    errno.EOPNOTSUPP: Missing(Absence.UNSUPPORTED),
    errno.ENAMETOOLONG: Missing(Absence.MALFORMED, "name too long"),
}


def recorded_absence(target: str) -> Missing:
    """Return the reason that a snapshot's link tells."""
    reason, _, detail = target.removeprefix(ABSENT_LINK).partition(":")
    try:
        return Missing(Absence(reason), detail)
    except ValueError:
        return Missing(Absence.ERROR, "unreadable when recorded")
