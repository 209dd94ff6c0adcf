"""NVML in this process: loaded when it is first asked for, initialised once, and once again in a forked child.

What keeps it from working has a name for each cause, because each has another remedy: no binding, no library, no
kernel driver, a kernel driver of another version, no permission, no GPU.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hal.drivers.contract import READY, Cause, Readiness
from hal.drivers.guarded import Call, describe
from hal.errors import NotReady
from hal.interfaces.deadline import Deadline
from hal_nvidia import errors as e

PATIENCE_SECONDS = 1.5
"""How long a first initialisation may take before it is said to hang. With persistence mode off it powers GPUs up."""

_CAUSES = {
    e.LIBRARY_NOT_FOUND: (
        Cause.NO_LIBRARY,
        "libnvidia-ml.so.1 is not here",
        "install NVIDIA's driver; in a container: --gpus all, with NVIDIA_DRIVER_CAPABILITIES=utility,compute",
    ),
    e.DRIVER_NOT_LOADED: (Cause.NO_DRIVER, "NVIDIA's kernel driver is not loaded", "modprobe nvidia; then see dmesg"),
    e.VERSION_MISMATCH: (
        Cause.VERSION_MISMATCH,
        "the library is of another version than the kernel driver that is loaded",
        "reboot, or end what uses the GPUs and: rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia && modprobe nvidia",
    ),
    e.NO_PERMISSION: (
        Cause.NO_PERMISSION,
        "the GPUs may not be opened",
        "look at the rights of /dev/nvidiactl and /dev/nvidia0, and at the container's device rules",
    ),
    e.OPERATING_SYSTEM: (
        Cause.NO_PERMISSION,
        "the operating system refuses /dev/nvidiactl",
        "look at the rights of /dev/nvidiactl and at the container's device rules",
    ),
    e.FUNCTION_NOT_FOUND: (
        Cause.VERSION_MISMATCH,
        "the library is too old for this binding",
        "install a driver of the year 2020 or later (450), or an older nvidia-ml-py",
    ),
    e.GPU_NOT_FOUND: (Cause.NO_HARDWARE, "the driver finds no GPU", "lspci -d 10de: and dmesg"),
}


def _import() -> Any:
    import pynvml

    return pynvml


class Library:
    """NVML's Python binding after ``nvmlInit``. Creating one loads nothing.

    ``generation`` grows when every handle of before must be fetched again: after a fork, and after :meth:`refresh`.
    """

    def __init__(self, load: Callable[[], Any] = _import) -> None:
        self._load = load
        self._lock = threading.RLock()
        self._nvml: Any = None
        self._starting: Call[Any] | None = None
        self._busy = 0
        self.generation = 0
        self.refresh_wanted = False
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._lock = threading.RLock()  # another thread may have held it at the fork
        self._nvml = self._starting = None
        self._busy = 0
        self.generation += 1

    def _start(self) -> Any:
        nvml = self._load()
        nvml.nvmlInit()
        return nvml

    def readiness(self, deadline: Deadline | None = None) -> Readiness:
        """Initialise NVML if that was not done, and say whether it works, or the one thing in the way."""
        if self._nvml is not None:
            return READY
        with self._lock:
            if self._nvml is None and self._starting is None:
                self._starting = Call(self._start, "nvmlInit")
            starting = self._starting
        limit = Deadline.after(PATIENCE_SECONDS)
        if deadline is not None and deadline.remaining_seconds < limit.remaining_seconds:
            limit = deadline
        if starting is None:
            return READY
        if not starting.join(limit):
            return Readiness(
                cause=Cause.TIMEOUT,
                detail="nvmlInit does not return",
                remedy="look for processes in state D and at dmesg; nvidia-persistenced keeps GPUs awake",
            )
        with self._lock:
            if self._starting is starting:
                self._starting = None
                self._nvml = starting.value
        return READY if starting.error is None else why_not(starting.error)

    @property
    def nvml(self) -> Any:
        """The binding, initialised. Raises :class:`~hal.errors.NotReady`."""
        if self._nvml is None:
            readiness = self.readiness()
            if not readiness.ready:
                raise NotReady(readiness.detail, during="nvmlInit", hint=readiness.remedy)
        return self._nvml

    @contextmanager
    def in_use(self) -> Iterator[Any]:
        """Give the binding to code that calls it; until it is done no refresh happens."""
        nvml = self.nvml
        with self._lock:
            self._busy += 1
        try:
            yield nvml
        finally:
            with self._lock:
                self._busy -= 1

    def refresh(self) -> bool:
        """Initialise NVML anew, which alone lets it see a GPU that was reset or came back; say whether it was done.

        While somebody is inside of a call it is not: whoever waits for events does it when its wait is over.
        """
        with self._lock:
            if self._nvml is None or self._busy:
                self.refresh_wanted = self._nvml is not None
                return False
            nvml, self._nvml = self._nvml, None
            self.refresh_wanted = False
            self.generation += 1
            try:
                nvml.nvmlShutdown()
            except Exception as error:  # a guard: a library that cannot be left can be entered again all the same
                if e.code_of(error) is None:
                    raise
        return self.readiness().ready


def why_not(error: BaseException) -> Readiness:
    """Say what an error at the start means, and what mends it."""
    if isinstance(error, ImportError):
        return Readiness(cause=Cause.NO_BINDING, detail=describe(error), remedy="pip install nvidia-ml-py")
    cause, detail, remedy = _CAUSES.get(
        e.code_of(error) or 0, (Cause.BROKEN, describe(error), "nvidia-smi, and look at dmesg")
    )
    return Readiness(cause=cause, detail=detail, remedy=remedy)


LIBRARY = Library()
"""The process's own: drivers share it, because NVML is one for a process, too."""
