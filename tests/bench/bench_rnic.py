"""What an opened mock RDMA NIC adds to the copy of memory that a put or get stands for."""

from __future__ import annotations

import tempfile
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.rows import Row

LIMIT_SECONDS = 1e-6
_NUMBER, _ROUNDS = 1024, 200
_BYTES = 64


def run() -> Iterator[Row]:
    from hal.drivers.guard import GuardPages
    from hal.interfaces.deadline import Deadline
    from hal.interfaces.rnic import ALL_ACCESS
    from hal.testing.kinds.rnic_bench import connect
    from hal_mocks.machine import Machine
    from hal_mocks.profile import load_profile
    from hal_mocks.rnic import MockRnicDriver

    with tempfile.TemporaryDirectory() as scratch:
        driver = MockRnicDriver(Machine(load_profile("dgx-h100"), Path(scratch, "state")))
        pages = GuardPages(Path(scratch, "guards"))
        handles = []
        for device in driver.discover(Deadline.after(10)).devices[:2]:
            pages.grant(device.id, 1)
            handles.append(driver.open(device.id, pages.guard(device.id, "bench", 1), Deadline.after(10)))
        near, far = handles
        connection, back = connect(near, far)
        region = far.register(4096, ALL_ACCESS)
        local, view = memoryview(bytearray(_BYTES)), region.view
        address, rkey = region.address + _BYTES, region.rkey

        def copy_in() -> None:
            view[_BYTES : 2 * _BYTES] = local

        def copy_out() -> None:
            local[:] = view[_BYTES : 2 * _BYTES]

        pairs: tuple[tuple[str, Callable[[], object], Callable[[], object]], ...] = (
            ("put", lambda: connection.put(local, address, rkey), copy_in),
            ("get", lambda: connection.get(local, address, rkey), copy_out),
        )
        for name, verb, peer in pairs:
            took, bare = _fastest(verb, peer)
            added = took - bare
            yield Row(
                name=f"mock rnic: {name} of {_BYTES} B",
                measured=f"{took * 1e6:.2f} us, {added * 1e6:.2f} us a call added",
                peer=f"memoryview: {bare * 1e6:.2f} us",
                ratio=None,
                goal="<= 1 us added",
                met=added <= LIMIT_SECONDS,
                includes="guard page, fault check, key, bounds and right, counters, seeded lateness",
            )

        def message() -> None:
            received = back.recv(local)
            connection.send(local)
            received.wait()

        for name, verb in (
            ("put + flush", lambda: (connection.put(local, address, rkey), connection.flush())),
            ("fetch_add", lambda: connection.fetch_add(address, rkey, 1)),
            ("recv + send + wait", message),
        ):
            yield Row(
                name=f"mock rnic: {name}",
                measured=f"{_fastest(verb)[0] * 1e6:.2f} us",
                peer="",
                ratio=None,
                goal="",
                met=True,
                includes="simulated: says nothing about hardware",
            )
        near.close()
        far.close()


def _fastest(*works: Callable[[], object]) -> list[float]:
    # In turns, and the quietest round of each: a shared machine has fast and slow seconds.
    best = [float("inf")] * len(works)
    for _ in range(_ROUNDS):
        for index, work in enumerate(works):
            best[index] = min(best[index], timeit.timeit(work, number=_NUMBER) / _NUMBER)
    return best
