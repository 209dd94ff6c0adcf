"""Services on a mock DPU's cores: who runs, within which limits, for which lease. State is in the card's folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator

import msgspec

from hal.errors import DeviceBusy, InvalidArgument, Unsupported
from hal.interfaces.deadline import Deadline
from hal.interfaces.dpu import Service, ServiceSpec, ServiceState
from hal_mocks.base import write_whole
from hal_mocks.dpu_processes import Supervisor, end_processes, exit_code, read_tail, start_process
from hal_mocks.dpu_state import Card


class _Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A service as the card remembers it; ``fence`` is that of the lease it belongs to."""

    spec: ServiceSpec
    started_at: float
    fence: int
    supervisor: Supervisor
    stopped: bool = False


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(tuple[_Record, ...])


class ServiceTable:
    """The services of one card."""

    def __init__(self, card: Card) -> None:
        self._card = card
        self._folder = card.folder / "services"
        self._path = card.folder / "services.json"

    def check(self, spec: ServiceSpec) -> None:
        """Raise if the card can never run this."""
        if not spec.name or not spec.name.replace("-", "").replace("_", "").isalnum() or len(spec.name) > 63:
            raise self._invalid(f"a service cannot be called {spec.name!r}", "letters, digits, - and _, at most 63")
        if not spec.command:
            if spec.image:
                raise Unsupported(
                    f"cannot fetch image {spec.image}: the mock has no registry",
                    device=self._card.id,
                    during="deploy",
                    hint="give a command: it runs as a process of this host",
                )
            raise self._invalid("neither command nor image", "say what shall run")
        if shutil.which(spec.command[0], path=_path_of(spec)) is None:
            raise self._invalid(f"no program {spec.command[0]!r}", "give its full path, or PATH in env")
        if spec.cores is not None and not 1 <= spec.cores <= self._card.dpu.cores:
            raise self._invalid(f"cores={spec.cores}", f"the card has {self._card.dpu.cores}")
        if spec.memory_bytes is not None and not 1 <= spec.memory_bytes <= self._card.dpu.memory_bytes:
            raise self._invalid(f"memory_bytes={spec.memory_bytes}", f"the card has {self._card.dpu.memory_bytes}")
        for port in spec.ports:
            if not 1 <= port <= 65535:
                raise self._invalid(f"port {port}", "ports are 1 to 65535")

    def deploy(self, spec: ServiceSpec, fence: int, now: float) -> Service:
        """Start a service within its limits."""
        self.check(spec)
        with self._locked():
            records = self._load()
            self._make_room(spec, records)
            folder = self._folder / spec.name
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            env = {"PATH": _path_of(spec), "HOME": str(folder), **spec.env}
            try:
                supervisor = start_process(folder, spec.command, env, uuid.uuid4().hex, spec.cores, spec.memory_bytes)
            except (OSError, ValueError) as error:
                raise self._invalid(f"could not start: {error}", "look at the command, its arguments and env") from None
            record = _Record(spec=spec, started_at=now, fence=fence, supervisor=supervisor)
            self._save((*(old for old in records if old.spec.name != spec.name), record))
        return self._look(record)

    def services(self) -> tuple[Service, ...]:
        """Return all services as they are now, oldest first."""
        return tuple(self._look(record) for record in self._load())

    def stop(self, name: str, grace_seconds: float, deadline: Deadline) -> Service:
        """End one service; other services can be started and stopped meanwhile."""
        record = self._find(name, "stop")
        running = record.supervisor.alive
        end_processes(self._card.id, record.supervisor, grace_seconds, deadline)
        if running:
            with self._locked():
                self._save(
                    tuple(
                        msgspec.structs.replace(other, stopped=True) if other.supervisor == record.supervisor else other
                        for other in self._load()
                    )
                )
        return self._look(self._find(name, "stop"))

    def logs(self, name: str, tail_bytes: int) -> str:
        """Return the end of a service's output."""
        self._find(name, "logs")
        if tail_bytes < 0:
            raise self._invalid(f"tail_bytes={tail_bytes}", "0 or more")
        return read_tail(self._folder / name / "log", tail_bytes)

    def clear(self, deadline: Deadline, up_to_fence: int | None = None) -> None:
        """Kill and forget all services, or those of leases with a fence up to the one given."""
        if not self._path.exists():
            return
        with self._locked():
            records = self._load()
            leaving = [record for record in records if up_to_fence is None or record.fence <= up_to_fence]
            for record in leaving:
                end_processes(self._card.id, record.supervisor, 0.0, deadline)
                shutil.rmtree(self._folder / record.spec.name, ignore_errors=True)
            if leaving:
                self._save(tuple(record for record in records if record not in leaving))

    def reserved(self) -> tuple[int, int]:
        """Return the cores and the memory that running services have reserved."""
        running = [record.spec for record in self._load() if record.supervisor.alive]
        return sum(spec.cores or 0 for spec in running), sum(spec.memory_bytes or 0 for spec in running)

    def _make_room(self, spec: ServiceSpec, records: tuple[_Record, ...]) -> None:
        running = [record.spec for record in records if record.supervisor.alive]
        if any(other.name == spec.name for other in running):
            raise self._busy(f"service {spec.name} is running", "stop it first, or choose another name")
        taken = {port for other in running for port in other.ports}
        for port in spec.ports:
            if port in taken:
                raise self._busy(f"port {port} is in use", "choose another port")
        cores = self._card.dpu.cores - sum(other.cores or 0 for other in running)
        if spec.cores is not None and spec.cores > cores:
            raise self._busy(f"{spec.cores} cores wanted, {cores} left", "stop a service, or ask for fewer cores")
        exposed = sum(item.size_bytes for item in self._card.state().exposures if item.backing == "memory")
        memory = self._card.dpu.memory_bytes - exposed - sum(other.memory_bytes or 0 for other in running)
        if spec.memory_bytes is not None and spec.memory_bytes > memory:
            raise self._busy(
                f"{spec.memory_bytes} bytes of memory wanted, {memory} left", "stop a service, or ask for less"
            )

    def _look(self, record: _Record) -> Service:
        folder = self._folder / record.spec.name
        running = record.supervisor.alive
        state = ServiceState.RUNNING
        if not running:
            state = ServiceState.STOPPED if record.stopped else ServiceState.EXITED
        return Service(
            spec=record.spec,
            state=state,
            pid=record.supervisor.pid,
            started_at=record.started_at,
            exit_code=None if running else exit_code(folder),
        )

    def _find(self, name: str, step: str) -> _Record:
        for record in self._load():
            if record.spec.name == name:
                return record
        raise InvalidArgument(
            f"no service {name!r}", device=self._card.id, during=step, hint="list the services with services()"
        )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        # Another lock than the card's: stopping takes as long as a process takes to die.
        with self._card.locked("services"):
            yield

    def _load(self) -> tuple[_Record, ...]:
        return _DECODER.decode(self._path.read_bytes()) if self._path.exists() else ()

    def _save(self, records: tuple[_Record, ...]) -> None:
        write_whole(self._path, _ENCODER.encode(records))

    def _invalid(self, why: str, hint: str) -> InvalidArgument:
        return InvalidArgument(why, device=self._card.id, during="deploy", hint=hint)

    def _busy(self, why: str, hint: str) -> DeviceBusy:
        return DeviceBusy(why, device=self._card.id, during="deploy", hint=hint)


def _path_of(spec: ServiceSpec) -> str:
    return spec.env.get("PATH") or os.environ.get("PATH") or os.defpath
