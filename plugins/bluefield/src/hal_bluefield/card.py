"""One card with all the ways to it: sysfs, rshim, BMC, Arm cores, and what the host remembers of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from hal.drivers.contract import HostRoot
from hal.drivers.fences import fence_folder
from hal.errors import AccessDenied, DeviceError, Unsupported
from hal.interfaces.deadline import Deadline
from hal.interfaces.dpu import DpuMode
from hal.model.device import Device
from hal_bluefield.commands import Shell, shell_of
from hal_bluefield.config import CardConfig, belongs
from hal_bluefield.flows import Flows
from hal_bluefield.functions import VirtualFunctions
from hal_bluefield.record import RecordFile
from hal_bluefield.redfish import Bmc
from hal_bluefield.rshim import Rshim, mode_of
from hal_bluefield.services import Services

_NIC_FUNCTIONS = ("a2d6", "a2d9", "a2dc", "a2df")


class Card:
    """The ways to one card. ``ours`` is False for a card of a recorded tree: it can be looked at, not used."""

    def __init__(self, device: Device, host: HostRoot, config: CardConfig | None, environ: Mapping[str, str]) -> None:
        self.made_of = (device, host, config)
        self.id = device.id
        self.device = device
        self.ours = host.root is None if config is None else belongs(config, host.root)
        self.config = config if config is not None and self.ours else CardConfig()
        rshim = device.value("rshim")
        self.rshim = Rshim(host.path("dev", str(rshim)), device.id) if rshim is not None and self.ours else None
        self.bmc = Bmc(device.id, self.config) if self.config.bmc else None
        self.shell = shell_of(device.id, self.config, environ) if self.ours and config is not None else None
        self.record = RecordFile(fence_folder(environ), device.id)
        functions = device.value("functions")
        self.addresses = tuple(map(str, functions)) if isinstance(functions, tuple) else ()
        folders = [host.path("sys", "bus", "pci", "devices", address) for address in self.addresses]
        self._nics = tuple(folder for folder in folders if _is_nic(folder))
        self.ticks: tuple[int, int] | None = None
        self._size: tuple[int | None, int | None] | None = None

    @property
    def nic_address(self) -> str | None:
        """The first of the NIC functions: the one devlink is asked about."""
        return self._nics[0].name if self._nics else None

    def functions(self) -> VirtualFunctions:
        """Return the virtual functions of the card."""
        return VirtualFunctions(self._nics, self.id)

    def close(self) -> None:
        """Close the connections."""
        if self.bmc is not None:
            self.bmc.close()

    def mode(self, step: str, deadline: Deadline) -> tuple[DpuMode, str]:
        """Return the mode and who said it: rshim where it tells, else the BMC. Raises what kept them from it."""
        trouble: DeviceError | None = None
        if self.rshim is not None:
            try:
                told = mode_of(self.rshim.fields(step, deadline))
                if told is not None:
                    return told, "rshim:misc"
            except DeviceError as error:
                trouble = error
        if self.bmc is not None:
            mode, words = self.bmc.mode(step, deadline)
            if mode is not None:
                return mode, "redfish:Oem.Nvidia.Mode"
            trouble = Unsupported(
                f"the BMC calls the mode {words!r}", device=self.id, during=step, hint="a newer BMC firmware"
            )
        raise trouble or Unsupported(
            "nobody tells the card's mode: rshim is older than 2.2 or not there, and no BMC is configured",
            device=self.id,
            during=step,
            hint="apt install rshim, or bmc in bluefield.toml",
        )

    def known_mode(self, step: str, deadline: Deadline) -> DpuMode | None:
        """Return the mode, None if nobody can tell."""
        try:
            return self.mode(step, deadline)[0]
        except DeviceError:
            return None

    def admit(self, step: str, deadline: Deadline, *, cores: bool = False) -> None:
        """Raise if the mode forbids a verb: any in restricted mode, those on the cores (``cores``) in NIC mode."""
        mode = self.known_mode(step, deadline)
        if mode is DpuMode.RESTRICTED:
            raise AccessDenied(
                "the card is in restricted mode: its host may not touch it",
                device=self.id,
                during=step,
                hint="the card's own controller (BMC) can leave the mode",
            )
        if cores and mode is DpuMode.NIC:
            raise Unsupported(
                "the card is in NIC mode: its cores do not serve", device=self.id, during=step, hint="set_mode(dpu)"
            )

    def need_bmc(self, step: str) -> Bmc:
        """Return the BMC, or raise ``Unsupported``."""
        if self.bmc is None:
            raise Unsupported(
                "only the card's BMC can do that, and none is configured",
                device=self.id,
                during=step,
                hint="bmc in bluefield.toml; see the README of rackhal-bluefield",
            )
        return self.bmc

    def need_rshim(self, step: str) -> Rshim:
        """Return the rshim, or raise ``Unsupported``."""
        if self.rshim is None:
            raise Unsupported(
                "the host has no rshim for the card", device=self.id, during=step, hint="systemctl start rshim"
            )
        return self.rshim

    def need_shell(self, step: str) -> Shell:
        """Return the way to the cores, or raise ``Unsupported``."""
        if self.shell is None:
            raise Unsupported(
                "the way to the card's cores is not configured",
                device=self.id,
                during=step,
                hint="ssh in bluefield.toml; see the README of rackhal-bluefield",
            )
        return self.shell

    def services(self, step: str, deadline: Deadline) -> Services:
        """Return the services of the card."""
        shell = self.need_shell(step)
        cores, memory = self.size(deadline)
        return Services(shell, self.id, self.config.service_image, cores, memory)

    def flows(self, step: str) -> Flows:
        """Return the flow rules of the card."""
        return Flows(self.need_shell(step), self.id, self.config.ports, self.record)

    def size(self, deadline: Deadline) -> tuple[int | None, int | None]:
        """Return Arm cores and memory in bytes, by the BMC, else by the card's own kernel; None for what is not known.
        They do not change: asked once.
        """
        if self._size is None:
            for ask in (self._size_by_bmc, self._size_by_shell):
                try:
                    cores, memory = ask(deadline)
                except DeviceError:
                    continue
                if cores is not None:
                    self._size = (cores, memory)
                    break
        return self._size or (None, None)

    def _size_by_bmc(self, deadline: Deadline) -> tuple[int | None, int | None]:
        return self.need_bmc("size").cores("size", deadline)

    def _size_by_shell(self, deadline: Deadline) -> tuple[int | None, int | None]:
        shell = self.need_shell("size")
        cores = shell.run(("nproc", "--all"), step="size", deadline=deadline)
        memory = meminfo(shell.run(("cat", "/proc/meminfo"), step="size", deadline=deadline).out)
        return int(cores.out) if cores.out.strip().isdecimal() else None, memory.get("MemTotal")

    def take_back(self, fence: int, step: str, deadline: Deadline) -> None:
        """End what leases up to this fence have left: services, flow rules, virtual functions."""
        works: list[Callable[[], None]] = []
        if self.shell is not None and self.known_mode(step, deadline) is DpuMode.DPU:
            works.append(lambda: self.services(step, deadline).take_back(fence, step, deadline))
            works.append(lambda: self.flows(step).take_back(fence, step, deadline))
        functions = self.functions()
        if functions.count(step):
            works.append(lambda: functions.set(0, step))
        trouble: DeviceError | None = None
        for work in works:
            try:
                work()
            except DeviceError as error:  # the others are taken back all the same
                trouble = trouble or error
        if trouble is not None:
            raise trouble


def meminfo(text: str) -> dict[str, int]:
    """Return ``/proc/meminfo`` in bytes."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        number = rest.split()[:1]
        if number and number[0].isdecimal():
            found[name] = int(number[0]) * 1024
    return found


def _is_nic(folder: Path) -> bool:
    try:
        return (folder / "device").read_text().strip().removeprefix("0x") in _NIC_FUNCTIONS
    except OSError:
        return False
