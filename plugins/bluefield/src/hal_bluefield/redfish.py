"""The card's BMC by Redfish: mode, boot progress, resets, sensors.

Paths and words are those of the BlueField BMC software manual (modes of operation, Arm state, chassis sensors) on top
of DMTF's Redfish schemas ``ComputerSystem``, ``Chassis`` and ``Sensor``.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

from hal.errors import AccessDenied, DeadlineExceeded, DeviceGone, DriverError, HardwareFault, Unsupported
from hal.interfaces.dpu import BootState, DpuMode
from hal_bluefield.config import CardConfig

if TYPE_CHECKING:
    import httpx

    from hal.interfaces.deadline import Deadline

SYSTEM = "/redfish/v1/Systems/Bluefield"
OEM = f"{SYSTEM}/Oem/Nvidia"
CHASSIS = "/redfish/v1/Chassis/Card1"

_MODES = {"DpuMode": DpuMode.DPU, "NicMode": DpuMode.NIC}
_WORDS = {mode: word for word, mode in _MODES.items()}
_STATES = {
    "BootRom": BootState.ROM,
    "BL2": BootState.ROM,
    "BL31": BootState.ROM,
    "UEFI": BootState.UEFI,
    "OsStarting": BootState.OS,
    "OsIsRunning": BootState.READY,
    "LowPowerStandby": BootState.OFF,
    "FirmwareUpdateInProgress": BootState.ROM,
    "OsCrashDumpInProgress": BootState.OS,
    "OsCrashDumpIsComplete": BootState.OS,
    "FWFaultCrashDumpInProgress": BootState.ROM,
    "FWFaultCrashDumpIsComplete": BootState.ROM,
}


class Bmc:
    """A card's BMC. One connection, kept open; every request has a deadline."""

    def __init__(self, device: str, card: CardConfig) -> None:
        self._device = device
        self._card = card
        self._client: httpx.Client | None = None

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def get(self, path: str, step: str, deadline: Deadline) -> dict[str, Any]:
        """Return a resource. Raises ``Unsupported`` if the BMC has none of that path."""
        return self._ask("GET", path, None, step, deadline)

    def mode(self, step: str, deadline: Deadline) -> tuple[DpuMode | None, str]:
        """Return the mode, and the BMC's own words for it. A card whose host may not use rshim is restricted."""
        told = self.get(OEM, step, deadline)
        words = str(told.get("Mode", ""))
        mode = _MODES.get(words)
        if mode is DpuMode.DPU and told.get("HostRshim") == "Disabled":
            return DpuMode.RESTRICTED, f"{words}, HostRshim Disabled"
        return mode, words

    def set_mode(self, mode: DpuMode, step: str, deadline: Deadline) -> None:
        """Choose the mode for the next power cycle; BlueField-2 has it among its BIOS settings."""
        try:
            self._ask("POST", f"{OEM}/Actions/Mode.Set", {"Mode": _WORDS[mode]}, step, deadline)
        except Unsupported:
            settings = {"Attributes": {"NicMode": _WORDS[mode]}}
            self._ask("PATCH", f"{SYSTEM}/Bios/Settings", settings, step, deadline)

    def boot(self, step: str, deadline: Deadline) -> tuple[BootState, str, str]:
        """Return the state, the BMC's own word for it, and when it was entered (RFC 3339, or empty)."""
        system = self.get(SYSTEM, step, deadline)
        progress = system.get("BootProgress") or {}
        if system.get("PowerState") == "Off":
            return BootState.OFF, "Off", str(progress.get("LastStateTime", ""))
        word = str(progress.get("OemLastState") or progress.get("LastState") or "")
        state = _STATES.get(word)
        if state is None:
            raise HardwareFault(
                f"the BMC says {word!r} of the boot, which means nothing",
                device=self._device,
                during=step,
                hint="look at BootProgress on the BMC",
            )
        return state, word, str(progress.get("LastStateTime", ""))

    def cores(self, step: str, deadline: Deadline) -> tuple[int | None, int | None]:
        """Return the number of Arm cores and the bytes of the card's memory, as far as the BMC tells."""
        system = self.get(SYSTEM, step, deadline)
        cores = (system.get("ProcessorSummary") or {}).get("CoreCount")
        gib = (system.get("MemorySummary") or {}).get("TotalSystemMemoryGiB")
        return (
            cores if isinstance(cores, int) and cores > 0 else None,
            int(gib * (1 << 30)) if isinstance(gib, int | float) and gib > 0 else None,
        )

    def reset(self, wanted: tuple[str, ...], step: str, deadline: Deadline) -> str:
        """Restart the card's system or its board, by the first wanted type that the BMC allows; returns it."""
        offered: list[str] = []
        for resource, action in ((SYSTEM, "#ComputerSystem.Reset"), (CHASSIS, "#Chassis.Reset")):
            try:
                entry = (self.get(resource, step, deadline).get("Actions") or {}).get(action) or {}
            except Unsupported:
                continue
            allowed = entry.get("ResetType@Redfish.AllowableValues")
            if allowed is None and entry.get("@Redfish.ActionInfo"):
                allowed = self._allowed(str(entry["@Redfish.ActionInfo"]), step, deadline)
            offered += [str(each) for each in allowed or ()]
            for kind in wanted:
                if allowed and kind in allowed:
                    self._ask("POST", str(entry["target"]), {"ResetType": kind}, step, deadline)
                    return kind
        raise Unsupported(
            f"the BMC offers none of {', '.join(wanted)}, only {', '.join(offered) or 'nothing'}",
            device=self._device,
            during=step,
            hint="power cycle the host, or by its own BMC",
        )

    def _allowed(self, info: str, step: str, deadline: Deadline) -> list[str]:
        for parameter in self.get(info, step, deadline).get("Parameters") or ():
            if parameter.get("Name") == "ResetType":
                return [str(each) for each in parameter.get("AllowableValues") or ()]
        return []

    def sensor(self, names: tuple[str, ...], step: str, deadline: Deadline) -> tuple[str, dict[str, Any]]:
        """Return the first of some sensors that the card has, with its name."""
        for name in names:
            try:
                return name, self.get(f"{CHASSIS}/Sensors/{name}", step, deadline)
            except Unsupported:
                continue
        raise Unsupported(
            f"the BMC has no sensor {' or '.join(names)}", device=self._device, during=step, hint="a newer BMC"
        )

    def image(self, step: str, deadline: Deadline) -> str:
        """Return the version of the card's operating system as the BMC knows it."""
        return str(self.get("/redfish/v1/UpdateService/FirmwareInventory/DPU_OS", step, deadline).get("Version") or "")

    def _connect(self) -> httpx.Client:
        if self._client is None:
            import httpx

            try:
                trust = ssl.create_default_context(cafile=self._card.bmc_ca or None)
                password = ""
                if self._card.bmc_password_file:
                    with open(self._card.bmc_password_file, encoding="utf-8") as file:
                        password = file.read().rstrip("\n")
            except (OSError, ssl.SSLError, UnicodeDecodeError) as error:
                raise DriverError(
                    f"the BMC's credentials cannot be read: {error}",
                    device=self._device,
                    during="connect to the BMC",
                    hint="bmc_ca and bmc_password_file in bluefield.toml",
                ) from None
            self._client = httpx.Client(
                base_url=self._card.bmc,
                auth=(self._card.bmc_user, password),
                verify=trust,
                trust_env=False,  # a BMC is on a network of its own: no proxy leads there
                headers={"Accept": "application/json"},
            )
        return self._client

    def _ask(self, verb: str, path: str, body: dict[str, Any] | None, step: str, deadline: Deadline) -> dict[str, Any]:
        import httpx

        deadline.check(device=self._device, during=step)
        try:
            answer = self._connect().request(verb, path, json=body, timeout=deadline.timeout)
        except httpx.TimeoutException:
            raise DeadlineExceeded(
                "the BMC did not answer in time; the outcome is unknown",
                device=self._device,
                during=step,
                hint=f"curl -k {self._card.bmc}/redfish/v1",
            ) from None
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise DeviceGone(
                f"its BMC cannot be reached at {self._card.bmc}: {error}",
                device=self._device,
                during=step,
                hint="bmc and bmc_ca in bluefield.toml; the BMC's network",
            ) from None
        return self._read(answer, verb, path, step)

    def _read(self, answer: httpx.Response, verb: str, path: str, step: str) -> dict[str, Any]:
        code = answer.status_code
        if code in (401, 403):
            raise AccessDenied(
                f"the BMC refuses {self._card.bmc_user}: {verb} {path} gives {code}",
                device=self._device,
                during=step,
                hint="bmc_user and bmc_password_file in bluefield.toml; a factory password must be changed first",
            )
        if code in (404, 405, 501):
            raise Unsupported(f"the BMC has no {verb} {path}", device=self._device, during=step, hint="a newer BMC")
        if code >= 400:
            raise HardwareFault(
                f"the BMC answers {code} to {verb} {path}: {_complaint(answer)}",
                device=self._device,
                during=step,
                hint="try again; then look at the BMC's event log",
            )
        if code == 204 or not answer.content:
            return {}
        try:
            told = answer.json()
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise HardwareFault(
                f"the BMC's answer to {verb} {path} is no JSON object",
                device=self._device,
                during=step,
                hint="a proxy?",
            )
        return told


def _complaint(answer: httpx.Response) -> str:
    """Return what Redfish says of an error, if it is one of Redfish."""
    try:
        error = answer.json()["error"]
        details = error.get("@Message.ExtendedInfo") or ()
        return str(next((each["Message"] for each in details if each.get("Message")), error.get("message", "")))
    except (ValueError, KeyError, TypeError, AttributeError):
        return answer.text[:200]
