"""Services on the card's Arm cores: containers of podman, found again by their labels.

A container outlives the process that started it, as a service must. What podman does not know (the lease's fence, the
reserved cores, the ports) stands in its labels, so that any process of the host can list and end it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from hal.errors import DeviceBusy, HardwareFault, InvalidArgument, Unsupported
from hal.interfaces.deadline import Deadline
from hal.interfaces.dpu import Service, ServiceSpec, ServiceState
from hal_bluefield.commands import Result, Shell

_PREFIX = "hal-"
_STOPPED = ".stopped"
_NO_SUCH_PROGRAM = (126, 127)
"""What podman exits with when the container's command cannot be run."""

_HINT = "podman on the card: ssh to it and look"


class Found(msgspec.Struct, frozen=True):
    """A container of ours: its name at podman, its fence, and the service it is."""

    container: str
    fence: int
    service: Service


class Services:
    """The services of one card. ``cores`` and ``memory_bytes`` bound what can be reserved, None if not known."""

    def __init__(
        self, shell: Shell, device: str, default_image: str, cores: int | None, memory_bytes: int | None
    ) -> None:
        self._shell = shell
        self._device = device
        self._default_image = default_image
        self._cores = cores
        self._memory = memory_bytes

    def all(self, step: str, deadline: Deadline) -> Sequence[Found]:
        """Return our containers in the order of their start."""
        result = self._podman(
            ("ps", "--all", "--format", "json", "--filter", f"label=hal.device={self._device}"), step, deadline
        )
        if result.code:
            raise self._fault(result, step)
        try:
            entries = json.loads(result.out or "[]") or []
            found = [self._found(entry) for entry in entries]
        except (ValueError, KeyError, TypeError, IndexError, msgspec.MsgspecError) as error:
            raise HardwareFault(
                f"podman's list of containers makes no sense: {error}", device=self._device, during=step, hint=_HINT
            ) from None
        return sorted(found, key=lambda each: (each.service.started_at, each.container))

    def deploy(self, spec: ServiceSpec, fence: int, deadline: Deadline) -> Service:
        """Start a service; see :class:`hal.interfaces.dpu.Services`."""
        step = "deploy"
        image = spec.image or self._default_image
        self._check(spec, image, step)
        there = self.all(step, deadline)
        self._make_room(spec, there, step)
        for old in there:
            if old.service.spec.name == spec.name:
                self._podman(("rm", "--force", old.container), step, deadline)
        result = self._podman(self._run_words(spec, image, fence), step, deadline)
        if result.code in _NO_SUCH_PROGRAM:
            self._podman(("rm", "--force", _PREFIX + spec.name), step, deadline)
            raise InvalidArgument(
                f"service {spec.name}: {result.complaint}",
                device=self._device,
                during=step,
                hint="a program that the image has, by its full path",
            )
        if result.code:
            self._podman(("rm", "--force", _PREFIX + spec.name), step, deadline)
            raise self._fault(result, step)
        for each in self.all(step, deadline):
            if each.service.spec.name == spec.name:
                return each.service
        raise HardwareFault(
            f"service {spec.name} was started and podman does not list it",
            device=self._device,
            during=step,
            hint=_HINT,
        )

    def stop(self, name: str, grace_seconds: float, deadline: Deadline) -> Service:
        """End a service; one that has ended is left as it is."""
        step = "stop"
        found = self._named(name, step, deadline)
        if found.service.state is not ServiceState.RUNNING:
            return found.service
        result = self._podman(("stop", "--time", str(max(0, round(grace_seconds))), found.container), step, deadline)
        if result.code:
            raise self._fault(result, step)
        # podman says "exited" of both: the name tells who was stopped from who ended by itself.
        self._podman(("rename", found.container, found.container + _STOPPED), step, deadline)
        return self._named(name, step, deadline).service

    def logs(self, name: str, tail_bytes: int, deadline: Deadline) -> str:
        """Return the end of what a service wrote."""
        found = self._named(name, "logs", deadline)
        result = self._podman(("logs", found.container), "logs", deadline)
        if result.code:
            raise self._fault(result, "logs")
        text = (result.out + result.err).encode()
        return text[-tail_bytes:].decode("utf-8", "replace") if tail_bytes > 0 else ""

    def take_back(self, fence: int, step: str, deadline: Deadline) -> None:
        """End and forget the services of every lease up to this fence."""
        for found in self.all(step, deadline):
            if found.fence <= fence:
                result = self._podman(("rm", "--force", "--time", "0", found.container), step, deadline)
                if result.code:
                    raise self._fault(result, step)

    def _check(self, spec: ServiceSpec, image: str, step: str) -> None:
        wrong = ""
        if not spec.name or not all(letter.isalnum() or letter in "-_" for letter in spec.name):
            wrong = f"the name {spec.name!r} is not made of letters, digits, - and _"
        elif not spec.command and not spec.image:
            wrong = "neither a command nor an image"
        elif spec.cores is not None and (spec.cores < 1 or (self._cores is not None and spec.cores > self._cores)):
            wrong = f"{spec.cores} cores of {self._cores if self._cores is not None else 'an unknown number'}"
        elif spec.memory_bytes is not None and (
            spec.memory_bytes < 1 or (self._memory is not None and spec.memory_bytes > self._memory)
        ):
            wrong = f"{spec.memory_bytes} bytes of memory of {self._memory}"
        elif any(not 0 < port < 65536 for port in spec.ports):
            wrong = f"ports {spec.ports}"
        if wrong:
            raise InvalidArgument(
                f"service {spec.name}: {wrong}", device=self._device, during=step, hint="see ServiceSpec"
            )
        if not image:
            raise Unsupported(
                f"service {spec.name} names no image, and none is configured for commands",
                device=self._device,
                during=step,
                hint="ServiceSpec(image=...), or service_image in bluefield.toml",
            )

    def _make_room(self, spec: ServiceSpec, there: Sequence[Found], step: str) -> None:
        running = [found.service.spec for found in there if found.service.state is ServiceState.RUNNING]
        why = ""
        if any(other.name == spec.name for other in running):
            why = f"a service {spec.name} runs already"
        for other in running:
            shared = set(other.ports) & set(spec.ports)
            if shared:
                why = f"port {min(shared)} is that of service {other.name}"
        cores = sum(other.cores or 0 for other in running)
        if spec.cores and self._cores is not None and cores + spec.cores > self._cores:
            why = f"{self._cores - cores} of {self._cores} cores are free, {spec.cores} were asked for"
        memory = sum(other.memory_bytes or 0 for other in running)
        if spec.memory_bytes and self._memory is not None and memory + spec.memory_bytes > self._memory:
            why = f"{self._memory - memory} bytes of memory are free, {spec.memory_bytes} were asked for"
        if why:
            raise DeviceBusy(why, device=self._device, during=step, hint="stop another service first")

    def _run_words(self, spec: ServiceSpec, image: str, fence: int) -> tuple[str, ...]:
        words = ["run", "--detach", "--pull", "missing" if spec.image else "never", "--network", "host"]
        words += ["--name", _PREFIX + spec.name, "--label", f"hal.device={self._device}"]
        words += ["--label", f"hal.fence={fence}", "--label", f"hal.spec={msgspec.json.encode(spec).decode()}"]
        for key, value in spec.env.items():
            words += ["--env", f"{key}={value}"]
        if spec.cores is not None:
            words += ["--cpus", str(spec.cores)]
        if spec.memory_bytes is not None:
            words += ["--memory", f"{spec.memory_bytes}b"]
        return (*words, "--", image, *spec.command)

    def _found(self, entry: dict[str, Any]) -> Found:
        labels = entry["Labels"]
        name = entry["Names"][0]
        spec = msgspec.json.decode(labels["hal.spec"], type=ServiceSpec)
        running = entry["State"] in ("running", "created", "initialized", "stopping", "paused")
        stopped = name.endswith(_STOPPED)
        service = Service(
            spec=spec,
            state=ServiceState.RUNNING if running else ServiceState.STOPPED if stopped else ServiceState.EXITED,
            pid=int(entry.get("Pid") or 0),
            started_at=_time(entry.get("StartedAt")),
            exit_code=None if running else int(entry.get("ExitCode") or 0),
        )
        return Found(name, int(labels["hal.fence"]), service)

    def _named(self, name: str, step: str, deadline: Deadline) -> Found:
        for found in self.all(step, deadline):
            if found.service.spec.name == name:
                return found
        raise InvalidArgument(
            f"there is no service {name!r}", device=self._device, during=step, hint="services() lists them"
        )

    def _podman(self, words: Sequence[str], step: str, deadline: Deadline) -> Result:
        return self._shell.run(("podman", *words), step=step, deadline=deadline)

    def _fault(self, result: Result, step: str) -> HardwareFault | Unsupported:
        if result.code == 127 and "podman" in result.complaint:
            return Unsupported(
                "the card has no podman", device=self._device, during=step, hint="apt install podman, on the card"
            )
        return HardwareFault(f"podman: {result.complaint}", device=self._device, during=step, hint=_HINT)


def _time(value: object) -> float:
    """Return podman's time of start: seconds since the epoch, or RFC 3339 in older versions."""
    if isinstance(value, int | float):
        return float(value)
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except ValueError:
        return 0.0
