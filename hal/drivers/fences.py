"""The highest fence that each device has seen, kept where it outlives the process that drives it.

Most hardware has no register for it. A file for each device lies in the runtime folder of the machine, so that every
process that prepares devices there refuses what an older one was promised, and a reboot, which ends every holder,
forgets it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hal.drivers.guard import page_path
from hal.errors import AccessDenied, StaleFence

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from hal.drivers.contract import Grant


def fence_folder(environ: Mapping[str, str]) -> Path:
    """Return where this machine's fences lie: ``$XDG_RUNTIME_DIR/hal/fences``, ``/run/hal/fences`` for root."""
    import tempfile
    from pathlib import Path

    runtime = environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime):
        return Path(runtime, "hal", "fences")
    return Path("/run/hal/fences") if os.getuid() == 0 else Path(tempfile.gettempdir(), f"hal-{os.getuid()}", "fences")


class Fences:
    """The fences of a driver's devices. Creating one touches nothing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def raise_to(self, device_id: str, grant: Grant, step: str) -> None:
        """Remember the grant's fence. Raises ``StaleFence`` for one below the highest seen, in any process,
        ``AccessDenied`` where the folder cannot be written.
        """
        import fcntl

        path = page_path(self._folder, device_id).with_suffix(".fence")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise AccessDenied(
                f"the fence file {path} cannot be written: {error.strerror}",
                device=device_id,
                during=step,
                hint="run the agent as root, or set XDG_RUNTIME_DIR to a folder of your own",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            seen = int(os.pread(descriptor, 32, 0) or b"0")
            if grant.fence < seen:
                raise StaleFence(
                    f"fence {grant.fence} is older than {seen}, which the device has seen",
                    device=device_id,
                    during=step,
                    hint=f"the lease was given to somebody else; claim again. If the journal that gave {seen} is gone "
                    f"for good, remove {path}",
                )
            if grant.fence > seen:
                os.pwrite(descriptor, f"{grant.fence:020}".encode(), 0)  # one size always: never a shorter number
        finally:
            os.close(descriptor)
