"""What a lease of AMD GPUs is to ROCm: ``ROCR_VISIBLE_DEVICES``.

ROCm takes UUIDs (``GPU-`` and 16 hexadecimal digits) and numbers in its own order of nodes. A device carries what it
is called as an alias ``rocr:``; a UUID where it has one of its own, because numbers change with the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hal.model.lease import AllocatedDevice

VARIABLE = "ROCR_VISIBLE_DEVICES"
SPACE = "rocr:"


def token(aliases: Sequence[str]) -> str | None:
    """Return what ROCm calls a device of these aliases, None if it does not see it."""
    return next((name.removeprefix(SPACE) for name in aliases if name.startswith(SPACE)), None)


def exported(devices: Sequence[AllocatedDevice]) -> Mapping[str, str]:
    """Return the variable for the GPUs of a lease that this plugin found; nothing where there is none."""
    tokens = [token(device.aliases) for device in devices]
    found = [name for name in tokens if name is not None]
    return {VARIABLE: ",".join(found)} if found else {}
