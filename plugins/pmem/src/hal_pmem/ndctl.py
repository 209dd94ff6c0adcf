"""Changing namespaces through ndctl. Each call is one command with a deadline; its complaint becomes a typed error."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hal.errors import AccessDenied, DeadlineExceeded, DeviceBusy, DeviceError, HardwareFault, NotReady
from hal.interfaces.deadline import Deadline
from hal.interfaces.pmem import NamespaceMode
from hal_pmem.tools import Tools, run

REMEDY = "apt install ndctl"


class Ndctl:
    """ndctl for one device: errors name it."""

    def __init__(self, tools: Tools, device: str) -> None:
        self._tools = tools
        self._device = device

    def create(
        self, region: str, mode: NamespaceMode, size_bytes: int, sector_bytes: int, uuid: str, deadline: Deadline
    ) -> str:
        """Create a namespace and return its kernel name."""
        command = ["create-namespace", f"--region={region}", f"--mode={mode}", f"--size={size_bytes}", f"--uuid={uuid}"]
        if mode is NamespaceMode.SECTOR:
            command.append(f"--sector-size={sector_bytes}")
        output = self._run("create", command, deadline)
        try:
            told = msgspec.json.decode(output)
        except msgspec.DecodeError:
            told = None
        name = told.get("dev") if isinstance(told, dict) else None
        if not isinstance(name, str):
            raise HardwareFault(
                "ndctl did not say what it has created",
                device=self._device,
                during="create",
                hint="ndctl list -Ni shows the namespaces as they are",
            )
        return name

    def destroy(self, namespace: str, deadline: Deadline) -> None:
        """Destroy a namespace and all that is in it."""
        self._run("destroy", ["destroy-namespace", "--force", namespace], deadline)

    def write_labels(self, region: str, modules: Sequence[str], deadline: Deadline) -> None:
        """Give modules without labels empty ones: the one namespace over all of the region is gone with it."""
        self._run("destroy", ["disable-region", region], deadline)
        try:
            self._run("destroy", ["init-labels", "--force", *modules], deadline)
        finally:
            self._run("destroy", ["enable-region", region], deadline)

    def clear_errors(self, namespace: str, deadline: Deadline) -> None:
        """Clear the poison in a namespace."""
        self._run("clear_poison", ["clear-errors", namespace], deadline)

    def _run(self, step: str, arguments: Sequence[str], deadline: Deadline) -> bytes:
        where = self._tools.find("ndctl")
        if where is None:
            raise NotReady("ndctl is not installed", device=self._device, during=step, hint=REMEDY)
        output, why = run([where, *arguments], self._tools.environ, deadline)
        self._tools.forget()
        if why:
            raise self._error(step, f"ndctl {arguments[0]}: {why}")
        return output

    def _error(self, step: str, why: str) -> DeviceError:
        low = why.lower()
        if "in time" in low:
            return DeadlineExceeded(
                f"{why}; the outcome is unknown", device=self._device, during=step, hint="ndctl list -Ni shows it"
            )
        if "ermission" in low or "not permitted" in low:
            return AccessDenied(why, device=self._device, during=step, hint="namespaces are changed by root alone")
        if "busy" in low or "in use" in low:
            return DeviceBusy(why, device=self._device, during=step, hint="unmount it, and end who has it mapped")
        return HardwareFault(why, device=self._device, during=step, hint="dmesg says why the kernel refused")
