"""Two processes write, read and change each other's memory over verbs, and learn of wrong keys and a dead peer.

    python verbs_pair.py [--device rxe0]

Run as root, or as a user who may open ``/dev/infiniband/uverbs*``, on a machine with an RDMA device whose port is up
(soft-RoCE will do) and python3-pyverbs. Every check is one JSON line, ``{"check": ..., "ok": true, "detail": ...}``;
the status is 1 if one failed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, TypeVar

from hal.drivers.contract import Grant, HostRoot
from hal.drivers.guard import GuardPages
from hal.errors import DeviceNotFound, FlushedError, LeaseEnded, RemoteAccessError, TransferError
from hal.interfaces.deadline import Deadline
from hal.interfaces.rnic import ALL_ACCESS, Access, CompletionCode, Connection, ConnectionState, Rnic
from hal_rdma.driver import RdmaDriver

FENCE = 10
REGION_BYTES = 1 << 16
ADDS = 500
WITHIN_SECONDS = 60.0
LEASE = "verbs-pair"

failures = 0


def check(name: str, work: Callable[[], object]) -> None:
    """Print how a check went, and go on whatever it raised."""
    global failures
    start = time.monotonic()
    try:
        detail, ok = work(), True
    except Exception as error:  # the report is the point: one failure must not hide the checks behind it
        detail, ok = f"{type(error).__name__}: {error}", False
        failures += 1
    seconds = round(time.monotonic() - start, 3)
    print(json.dumps({"check": name, "ok": ok, "detail": str(detail), "seconds": seconds}), flush=True)


def soon() -> Deadline:
    """Return the deadline of one step."""
    return Deadline.after(WITHIN_SECONDS)


def open_nic(name: str, runtime: str) -> tuple[RdmaDriver, Rnic]:
    """Open a device by its RDMA name, under the lease whose page lies in ``runtime``."""
    environ = {"HAL_RDMA_TRANSPORT": "verbs", "XDG_RUNTIME_DIR": runtime}
    driver = RdmaDriver([HostRoot(node=os.uname().nodename)], environ)
    devices = [one for one in driver.discover(soon()).devices if not name or one.name == name]
    if not devices:
        raise DeviceNotFound("no such RDMA device here", device=name or "any", during="open", hint="rdma link")
    device = devices[0]
    pages = GuardPages(Path(runtime, "guards"))
    if not pages.fence(device.id):
        driver.prepare(device.id, Grant(lease=LEASE, fence=FENCE), soon())
        pages.grant(device.id, FENCE)
    return driver, driver.open(device.id, pages.guard(device.id, LEASE, FENCE), soon())


def open_and_tell(name: str, runtime: str, opened: list[tuple[RdmaDriver, Rnic]]) -> str:
    """Open a device into ``opened``; return by what its data is carried."""
    opened.append(open_nic(name, runtime))
    nic = opened[0][1]
    told = nic.telemetry()
    return f"{nic.device.name} by {told['transport'].value}, {told['transport_library'].value}"


def far_side(pipe: Pipe, name: str, runtime: str) -> None:
    """The other process: it registers memory, connects, and does as it is told."""
    driver, nic = open_nic(name, runtime)
    region = nic.register(REGION_BYTES, ALL_ACCESS)
    readable = nic.register(64, Access.REMOTE_READ | Access.LOCAL_WRITE)
    pipe.send((region.address, region.rkey, readable.address, readable.rkey))
    connection: Connection | None = None
    while True:
        command, argument = pipe.recv()
        if command == "connect":
            endpoint = nic.endpoint(rnr_timeout_seconds=2.0)
            connection = endpoint.connect(argument)
            pipe.send(endpoint.address)
        elif command == "show":
            offset, length = argument
            pipe.send(bytes(region.view[offset : offset + length]))
        elif command == "add":
            assert connection is not None
            address, rkey = argument
            for _ in range(ADDS):
                connection.fetch_add(address, rkey, 1).wait(soon())
            pipe.send(ADDS)
        elif command == "echo":
            assert connection is not None
            into = bytearray(1 << 16)
            length = connection.recv(into).wait(soon())
            connection.send(bytes(into[:length][::-1])).wait(soon())
            pipe.send(length)
        elif command == "forget":
            readable.close()
            pipe.send(None)
        else:
            break
    nic.close()
    driver.close()


class Far:
    """The other process, as this one sees it."""

    def __init__(self, name: str, runtime: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=far_side, args=(theirs, name, runtime), daemon=True)
        self.process.start()
        theirs.close()
        self.address, self.rkey, self.readable, self.readable_key = self.answer()

    def tell(self, command: str, argument: object = None) -> None:
        """Have something done there."""
        self._pipe.send((command, argument))

    def answer(self) -> Any:
        """Return what it says next."""
        if not self._pipe.poll(WITHIN_SECONDS):
            raise TimeoutError("the other process does not answer")
        return self._pipe.recv()

    def ask(self, command: str, argument: object = None) -> Any:
        """Have something done there and return its answer."""
        self.tell(command, argument)
        return self.answer()

    def connect(self, nic: Rnic) -> Connection:
        """Connect a new pair of endpoints; the far one is used from now on."""
        endpoint = nic.endpoint(rnr_timeout_seconds=2.0)
        return endpoint.connect(self.ask("connect", endpoint.address))


def write_and_read(near: Connection, far: Far) -> str:
    """Put bytes, have the other process show them, and get them back."""
    data = os.urandom(20_000)
    near.put(data, far.address + 100, far.rkey).wait(soon())
    near.flush().wait(soon())
    shown = far.ask("show", (100, len(data)))
    back = bytearray(len(data))
    near.get(back, far.address + 100, far.rkey).wait(soon())
    assert shown == data == back
    return f"{len(data)} bytes written, seen there, read back"


def count_together(nic: Rnic, far: Far) -> str:
    """Both processes add to one word of this one's at the same time; nothing is lost."""
    with nic.register(64, ALL_ACCESS) as word, nic.endpoint() as one, nic.endpoint() as other:
        here = one.connect(other.address)
        other.connect(one.address)
        connection = far.connect(nic)
        far.tell("add", (word.address, word.rkey))
        for _ in range(ADDS):
            here.fetch_add(word.address, word.rkey, 1).wait(soon())
        far.answer()
        total = word.view[:8].cast("Q")[0]
        assert total == 2 * ADDS, total
        before = here.compare_and_swap(word.address, word.rkey, total, 7).wait(soon())
        assert before == total
        assert word.view[:8].cast("Q")[0] == 7
        connection.close()
    return f"{total} additions of two processes, and a swap"


def exchange_messages(near: Connection, far: Far) -> str:
    """Send a message and get it back reversed."""
    sizes = (1, 100, 4096, 60_000)
    for size in sizes:
        message = os.urandom(size)
        into = bytearray(size)
        received = near.recv(into)
        far.tell("echo")
        near.send(message).wait(soon())
        assert received.wait(soon()) == size
        far.answer()
        assert into == message[::-1]
    return f"messages of {', '.join(map(str, sizes))} bytes there and back"


def broken_by(nic: Rnic, far: Far, work: Callable[[Connection], object]) -> str:
    """Do something that the target refuses; the connection is in error, and what follows is flushed."""
    with far.connect(nic) as connection:
        error = raised(RemoteAccessError, lambda: work(connection))
        if error.code != CompletionCode.REMOTE_ACCESS or connection.state is not ConnectionState.ERROR:
            raise AssertionError(f"code {error.code}, connection in state {connection.state}")
        raised(FlushedError, lambda: connection.put(b"x", far.address, far.rkey).wait(soon()))
    return str(error)


_Error = TypeVar("_Error", bound=Exception)


def raised(kind: type[_Error], work: Callable[[], object]) -> _Error:
    """Return the error that something raises."""
    try:
        work()
    except kind as error:
        return error
    raise AssertionError(f"it did not raise {kind.__name__}")


def forged(far: Far) -> bytes:
    """Return a key that is well-formed, checksum and all, and whose NIC's part is invented."""
    from hal_rdma.verbs.wire import pack_key, unpack_key

    key = unpack_key(far.rkey)
    assert key is not None
    return pack_key(key._replace(key=key.key ^ 0x00A5_5A00))


def notice_death(nic: Rnic, far: Far) -> str:
    """Kill the other process; a posted receive and a put fail with typed errors within a second."""
    connection = far.connect(nic)
    connection.put(b"alive", far.address, far.rkey).wait(soon())
    connection.flush().wait(soon())
    waiting = connection.recv(bytearray(16))
    far.process.kill()
    far.process.join()
    start = time.monotonic()
    error = raised(TransferError, lambda: waiting.wait(Deadline.after(5)))
    seconds = time.monotonic() - start
    if seconds >= 1.0:
        raise AssertionError(f"noticed after {seconds:.2f} s")
    raised(TransferError, lambda: connection.put(b"dead", far.address, far.rkey).wait(soon()))
    return f"{type(error).__name__} after {seconds:.2f} s; the connection's error: {connection.error}"


def end_lease(nic: Rnic, runtime: str) -> str:
    """End the lease in another way than closing: every verb of every connection refuses."""
    with nic.register(64, ALL_ACCESS) as region, nic.endpoint() as one, nic.endpoint() as other:
        here = one.connect(other.address)
        other.connect(one.address)
        here.put(b"mine", region.address, region.rkey).wait(soon())
        GuardPages(Path(runtime, "guards")).revoke(nic.device.id, FENCE)
        error = raised(LeaseEnded, lambda: here.put(b"late", region.address, region.rkey))
        assert bytes(region.view[:4]) == b"mine"
    return str(error)


def main() -> int:
    """Run all checks; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="", help="RDMA device; the first one if none is named")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as runtime:
        opened: list[tuple[RdmaDriver, Rnic]] = []
        check("open", lambda: open_and_tell(options.device, runtime, opened))
        if not opened:
            return 1
        driver, nic = opened[0]
        far = Far(options.device, runtime)
        near = far.connect(nic)
        check("write and read", lambda: write_and_read(near, far))
        check("atomics", lambda: count_together(nic, far))
        near = far.connect(nic)
        check("send and receive", lambda: exchange_messages(near, far))
        check("key of nobody", lambda: broken_by(nic, far, lambda c: c.put(b"x", far.address, b"nobody").wait(soon())))
        check(
            "forged key",
            lambda: broken_by(nic, far, lambda c: c.put(b"x", far.address, forged(far)).wait(soon())),
        )
        check(
            "right not given",
            lambda: broken_by(nic, far, lambda c: c.put(b"x", far.readable, far.readable_key).wait(soon())),
        )
        far.ask("forget")
        check(
            "stale key",
            lambda: broken_by(nic, far, lambda c: c.get(bytearray(8), far.readable, far.readable_key).wait(soon())),
        )
        check("peer killed", lambda: notice_death(nic, far))
        check("lease ended", lambda: end_lease(nic, runtime))
        nic.close()
        driver.close()
    print(json.dumps({"check": "all", "ok": not failures, "detail": f"{failures} failed"}), flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
