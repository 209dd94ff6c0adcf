"""The card by rshim, the host's own wire to it: ``/dev/rshimN/{misc,boot,console}``.

A user process serves the files on a running machine (the rshim driver's manual page), so any access may hang: each is
made in a thread that can be left behind.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

from hal.drivers.guarded import Call
from hal.errors import AccessDenied, DeadlineExceeded, DeviceGone
from hal.interfaces.deadline import Deadline
from hal.interfaces.dpu import BootState, DpuMode

T = TypeVar("T")

CHUNK_BYTES = 1 << 20
_NUMBER = re.compile(r"rshim\d+\Z")
_LOG_LINE = re.compile(r"(?:INFO|WARN|ERR|ASSERT)\[(\w+)\]:\s*(.*)")


class Rshim:
    """The files of one card's rshim."""

    def __init__(self, folder: Path, device: str) -> None:
        self.folder = folder
        self._device = device

    @property
    def name(self) -> str:
        """``rshim0``."""
        return self.folder.name

    def fields(self, step: str, deadline: Deadline) -> dict[str, str]:
        """Return what ``misc`` says, by its keys; lines of the log (display level 2) are not among them."""
        found: dict[str, str] = {}
        for line in self._text(step, deadline).splitlines():
            parts = line.split(None, 1)
            if len(parts) == 2 and parts[0].isupper():
                found[parts[0]] = parts[1].strip()
        return found

    def boot_state(self, step: str, deadline: Deadline) -> BootState | None:
        """Return how far the last boot came by the card's own log, or None if there is none (it needs level 2)."""
        self.write("DISPLAY_LEVEL", "2", step, deadline)
        state: BootState | None = None
        for line in self._text(step, deadline).splitlines():
            told = _LOG_LINE.search(line)
            if told is None:
                continue
            module, text = told.group(1), told.group(2).lower()
            if "is ready" in text:
                state = BootState.READY
            elif "linux up" in text or "exit boot service" in text:
                state = BootState.OS
            elif module == "UEFI":
                state = BootState.UEFI
            elif module in ("BL2", "BL31", "PSC"):
                state = BootState.ROM
        return state

    def write(self, key: str, value: str, step: str, deadline: Deadline) -> None:
        """Set one key of ``misc``."""

        def work() -> None:
            descriptor = os.open(self.folder / "misc", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, f"{key} {value}\n".encode())
            finally:
                os.close(descriptor)

        self._guarded(work, "misc", step, deadline)

    def push(self, data: memoryview, step: str, deadline: Deadline, report: Callable[[float], None]) -> None:
        """Write a boot stream; ``report`` is told how much of it is written, from 0 to 1."""

        def work() -> None:
            descriptor = os.open(self.folder / "boot", os.O_WRONLY | os.O_CLOEXEC)
            try:
                written = 0
                while written < len(data):
                    written += os.write(descriptor, data[written : written + CHUNK_BYTES])
                    report(written / len(data))
            finally:
                os.close(descriptor)

        self._guarded(work, "boot", step, deadline)

    def _text(self, step: str, deadline: Deadline) -> str:
        def work() -> str:
            with open(self.folder / "misc", encoding="utf-8", errors="replace") as file:
                return file.read()

        return self._guarded(work, "misc", step, deadline)

    def _guarded(self, work: Callable[[], T], name: str, step: str, deadline: Deadline) -> T:
        call = Call(work, f"{self.name}/{name}")
        if not call.join(deadline):
            raise DeadlineExceeded(
                f"{self.folder / name} did not answer in time",
                device=self._device,
                during=step,
                hint="systemctl restart rshim",
            )
        if isinstance(call.error, OSError):
            raise _no_file(self.folder / name, call.error, self._device, step) from None
        if call.error is not None:
            raise call.error
        return cast("T", call.value)


def find_rshims(dev: Path) -> list[Path]:
    """Return the folders of the rshims, by number."""
    try:
        names = [name for name in os.listdir(dev) if _NUMBER.match(name)]
    except OSError:
        return []
    return [dev / name for name in sorted(names, key=lambda name: int(name[5:]))]


def mode_of(fields: dict[str, str]) -> DpuMode | None:
    """Return the mode that ``misc`` tells (rshim 2.2 and later), or None."""
    told = fields.get("BF_MODE", "").lower()
    for word, mode in (("restricted", DpuMode.RESTRICTED), ("nic", DpuMode.NIC), ("dpu", DpuMode.DPU)):
        if told.startswith(word):
            return mode
    return DpuMode.DPU if told.startswith("embedded") else None


class Console:
    """The card's serial console, read as it comes. Whoever reads it takes the bytes: there is one console."""

    def __init__(self, path: Path, device: str) -> None:
        self._path = path
        self._device = device
        self._descriptor: int | None = None
        self._rest = b""

    def pull(self, step: str) -> list[str]:
        """Return the whole lines that have come since the last call, without waiting."""
        if self._descriptor is None:
            self._descriptor = self._open(step)
        lines: list[str] = []
        while True:
            try:
                data = os.read(self._descriptor, 1 << 16)
            except BlockingIOError:
                break
            except OSError as error:
                raise DeviceGone(
                    f"{self._path}: {error.strerror}", device=self._device, during=step, hint="systemctl status rshim"
                ) from None
            if not data:
                break
            *whole, self._rest = (self._rest + data).split(b"\n")
            lines += [line.decode("utf-8", "replace").rstrip("\r") for line in whole]
        return lines

    def _open(self, step: str) -> int:
        try:
            fifo = stat.S_ISFIFO(os.stat(self._path).st_mode)
            return os.open(
                self._path, (os.O_RDWR if fifo else os.O_RDONLY) | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
            )
        except OSError as error:
            raise _no_file(self._path, error, self._device, step) from None

    def close(self) -> None:
        """Leave the console to others."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _no_file(path: Path, error: OSError, device: str, step: str) -> AccessDenied | DeviceGone:
    if isinstance(error, PermissionError):
        return AccessDenied(f"{path}: {error.strerror}", device=device, during=step, hint="run the agent as root")
    return DeviceGone(
        f"{path}: {error.strerror}",
        device=device,
        during=step,
        hint="systemctl start rshim; another host or the BMC may hold the card's rshim",
    )
