"""The other end of a connection, in a process of its own that does as it is told."""

from __future__ import annotations

import importlib
import multiprocessing
from multiprocessing.connection import Connection as Pipe
from typing import Any, NamedTuple, Self, cast

from hal.drivers.contract import Driver
from hal.drivers.guard import OpenGuard
from hal.interfaces.deadline import Deadline
from hal.interfaces.rnic import ALL_ACCESS, Connection, Region, Rnic

WITHIN_SECONDS = 60.0


class DriverSpec(NamedTuple):
    """How another process builds the same driver: ``module.function(*arguments)``, all of which can be pickled."""

    module: str
    function: str
    arguments: tuple[Any, ...] = ()


class RemoteMemory(NamedTuple):
    """A region of the other process."""

    address: int
    rkey: bytes


class PeerProcess:
    """A spawned process that has opened a NIC. Errors there are raised here."""

    def __init__(self, spec: DriverSpec, device_id: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_main, args=(theirs, spec, device_id), daemon=True)
        self._process.start()
        theirs.close()
        self.finish()

    def connect(self, nic: Rnic) -> Connection:
        """Connect a new endpoint of the process with a new one of ``nic``; later commands there use this one."""
        endpoint = nic.endpoint(rnr_timeout_seconds=5.0)
        address = cast(bytes, self._ask("connect", endpoint.address))
        return endpoint.connect(address)

    def register(self, length_bytes: int) -> RemoteMemory:
        """Register new memory there."""
        return RemoteMemory(*cast(tuple[int, bytes], self._ask("register", length_bytes)))

    def register_own(self, length_bytes: int) -> RemoteMemory:
        """Register an array of that process, which begins at a multiple of 8."""
        return RemoteMemory(*cast(tuple[int, bytes], self._ask("register_own", length_bytes)))

    def read(self, memory: RemoteMemory, offset: int, length_bytes: int) -> bytes:
        """Return what that process itself sees in its memory."""
        return cast(bytes, self._ask("read", memory.rkey, offset, length_bytes))

    def start(self, command: str, *arguments: object) -> None:
        """Begin something there without waiting for it."""
        self._pipe.send((command, arguments))

    def finish(self) -> object:
        """Wait for what was begun, and return or raise what came of it."""
        if not self._pipe.poll(WITHIN_SECONDS):
            raise TimeoutError("the other process does not answer")
        worked, answer = self._pipe.recv()
        if not worked:
            raise cast(Exception, answer)
        return answer

    def kill(self) -> None:
        """End the process as SIGKILL does."""
        self._process.kill()
        self._process.join()

    def _ask(self, command: str, *arguments: object) -> object:
        self.start(command, *arguments)
        return self.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.is_alive():
            self._pipe.send(("end", ()))
            self._process.join(WITHIN_SECONDS)
        self._pipe.close()


class _Peer:
    def __init__(self, nic: Rnic) -> None:
        self.nic = nic
        self.regions: dict[bytes, Region] = {}
        self.connection: Connection | None = None

    def connect(self, address: bytes) -> bytes:
        endpoint = self.nic.endpoint(rnr_timeout_seconds=5.0)
        self.connection = endpoint.connect(address)
        return endpoint.address

    def register(self, length: int) -> tuple[int, bytes]:
        return self._keep(self.nic.register(length, ALL_ACCESS))

    def register_own(self, length: int) -> tuple[int, bytes]:
        import numpy as np

        return self._keep(self.nic.register(np.zeros(length // 8, np.uint64), ALL_ACCESS))

    def _keep(self, region: Region) -> tuple[int, bytes]:
        self.regions[region.rkey] = region
        return region.address, region.rkey

    def read(self, rkey: bytes, offset: int, length: int) -> bytes:
        return bytes(self.regions[rkey].view[offset : offset + length])

    def fetch_add(self, address: int, rkey: bytes, rounds: int) -> None:
        assert self.connection is not None
        for _ in range(rounds):
            self.connection.fetch_add(address, rkey, 1).wait(Deadline.after(WITHIN_SECONDS))

    def echo(self, rounds: int) -> None:
        assert self.connection is not None
        buffer = bytearray(64)
        for _ in range(rounds):
            length = self.connection.recv(buffer).wait(Deadline.after(WITHIN_SECONDS))
            self.connection.send(bytes(buffer[:length][::-1])).wait(Deadline.after(WITHIN_SECONDS))


def _main(pipe: Pipe, spec: DriverSpec, device_id: str) -> None:
    driver = cast(Driver, getattr(importlib.import_module(spec.module), spec.function)(*spec.arguments))
    with cast(Rnic, driver.open(device_id, OpenGuard(), Deadline.after(WITHIN_SECONDS))) as nic:
        peer = _Peer(nic)
        pipe.send((True, None))
        while True:
            command, arguments = pipe.recv()
            if command == "end":
                break
            try:
                pipe.send((True, getattr(peer, command)(*arguments)))
            except Exception as error:  # carried to the process that asked
                pipe.send((False, error))
    driver.close()
