"""One-sided transfers between two processes through the handles of a software NIC, beside UCX's bare calls.

Bare is what cffi can do at best: UCX's own calls on buffers, keys and parameters made ready once, in the same process,
over the same transports. ``HAL_BENCH_UCXX=/path/to/python`` names an interpreter that has ucxx.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.bench.rows import Row

_SMALL, _LARGE = 64, 1 << 20
_ROUNDS, _NUMBER = 2000, 50
_PEER = Path(__file__).with_name("ucxx_peer.py")
Work = Callable[[], object]


def run() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as scratch:
        yield from _shared_memory(Path(scratch, "shm"))
        yield from _tcp(Path(scratch, "tcp"))


class _Bench:
    """A near NIC in this process, connected with a far one in another; each opened under a guard page."""

    def __init__(self, folder: Path, medium: str) -> None:
        from hal.interfaces.deadline import Deadline

        folder.mkdir(parents=True)
        self.environ = {"HAL_RDMA_SOFTWARE": f"near={medium};far={medium}", "XDG_RUNTIME_DIR": str(folder)}
        self.folder = folder
        self.nic = _open(self.environ, folder, "near")
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_far, args=(theirs, self.environ, str(folder)), daemon=True)
        self.process.start()
        endpoint = self.nic.endpoint(rnr_timeout_seconds=5)
        self.pipe.send(endpoint.address)
        self.far = self.pipe.recv()
        self.connection = endpoint.connect(self.far["endpoint"])
        self.connection.put(bytes(64), self.far["address"], self.far["rkey"]).wait(Deadline.after(10))
        self.connection.flush().wait(Deadline.after(10))

    def kill(self) -> float:
        """End the far process as SIGKILL does; seconds until a posted receive has failed here."""
        from hal.errors import TransferError
        from hal.interfaces.deadline import Deadline

        waiting = self.connection.recv(bytearray(8))
        start = time.perf_counter()
        self.process.kill()
        try:
            waiting.wait(Deadline.after(10))
        except TransferError:
            return time.perf_counter() - start
        return float("inf")

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self.nic.close()


class _Bare:
    """UCX's calls on what the far process's bare worker has."""

    def __init__(self, bench: _Bench) -> None:
        from hal_rdma.ucx import declarations as c
        from hal_rdma.ucx.context import Context
        from hal_rdma.ucx.library import choose_library, load_library
        from hal_rdma.ucx.worker import Worker

        library = load_library(choose_library(bench.environ, software=True))
        ffi, ucp = library.ffi, library.ucp
        self._worker = Worker(Context(library, bench.far["settings"], "bare"))
        self._worker.connect(bench.far["bare_worker"])
        worker, ep, plain = self._worker.handle, self._worker.ep, self._worker.plain
        rkey = ffi.new("ucp_rkey_h*")
        assert ucp.ucp_ep_rkey_unpack(ep, ffi.from_buffer(bench.far["bare_rkey"]), rkey) == c.OK
        key, address = rkey[0], bench.far["bare_address"]
        local = self._local = ffi.new("char[]", _LARGE)
        start = int(ffi.cast("uintptr_t", local))
        argument, reply = ffi.new("uint64_t*"), ffi.new("uint64_t*")
        params = ffi.new("ucp_request_param_t*")
        params.op_attr_mask, params.datatype = c.OP_DATATYPE | c.OP_REPLY_BUFFER, c.WORD_DATATYPE
        params.reply_buffer = reply
        put, get, change, flush = ucp.ucp_put_nbx, ucp.ucp_get_nbx, ucp.ucp_atomic_op_nbx, ucp.ucp_ep_flush_nbx
        progress, status, free = ucp.ucp_worker_progress, ucp.ucp_request_check_status, ucp.ucp_request_free

        def finish(request: int) -> None:
            while status(request) == c.INPROGRESS:
                progress(worker)
            free(request)

        def put_and_flush() -> None:
            request = put(ep, start, _SMALL, address, key, plain)
            if request:
                finish(request)
            request = flush(ep, plain)
            if request:
                finish(request)

        def get_small() -> None:
            request = get(ep, start, _SMALL, address, key, plain)
            if request:
                finish(request)

        def fetch_add() -> int:
            argument[0] = 1
            request = change(ep, c.ATOMIC_ADD, argument, 1, address + 4096, key, params)
            if request:
                finish(request)
            found: int = reply[0]
            return found

        self.put_and_flush, self.get, self.fetch_add = put_and_flush, get_small, fetch_add


def _shared_memory(folder: Path) -> Iterator[Row]:
    import numpy as np

    bench = _Bench(folder, "shm")
    bare = _Bare(bench)
    connection, address, rkey = bench.connection, bench.far["address"], bench.far["rkey"]
    local, word = bytearray(_SMALL), address + 4096
    put, get, fetch_add, flush = connection.put, connection.get, connection.fetch_add, connection.flush

    def put_and_flush() -> None:
        put(local, address, rkey).wait()
        flush().wait()

    pairs: tuple[tuple[str, Work, Work], ...] = (
        ("put + flush of 64 B", put_and_flush, bare.put_and_flush),
        ("get of 64 B", lambda: get(local, address, rkey).wait(), bare.get),
        ("fetch_add", lambda: fetch_add(word, rkey, 1).wait(), bare.fetch_add),
    )
    small = float("inf")
    for name, verb, peer in pairs:
        took, calls = _fastest(_ROUNDS, _NUMBER, verb, peer)
        small = min(small, took) if name.startswith("put") else small
        yield Row(
            name=f"rdma shm: {name}",
            measured=f"{took * 1e6:.2f} us",
            peer=f"bare cffi calls: {calls * 1e6:.2f} us",
            ratio=took / calls,
            goal="at most 1.15 times bare",
            met=took <= 1.15 * calls,
            includes=f"{bench.far['library']}; two processes; guard page, key, bounds, rights, operation and its wait",
        )
    source, copy = np.ones(_LARGE, np.uint8), np.zeros(_LARGE, np.uint8)
    data = memoryview(source)
    put_large, copied = _fastest(
        60, 20, lambda: connection.put(data, address, rkey).wait(), lambda: np.copyto(copy, source)
    )
    connection.flush().wait()
    yield Row(
        name="rdma shm: put of 1 MiB",
        measured=f"{_LARGE / put_large / 1e9:.1f} GB/s",
        peer=f"numpy's copy: {_LARGE / copied / 1e9:.1f} GB/s",
        ratio=copied / put_large,
        goal="at least 0.8 of numpy's copy",
        met=copied >= 0.8 * put_large,
        includes="into the other process's memory, no flush: the copy is the transfer",
    )
    yield _beside_ucxx(small)
    yield _messages(bench, "shm")
    yield _death(bench, "shm")
    bench.close()


def _tcp(folder: Path) -> Iterator[Row]:
    bench = _Bench(folder, "tcp")
    connection, address, rkey = bench.connection, bench.far["address"], bench.far["rkey"]
    local = bytearray(_SMALL)

    def put_and_flush() -> None:
        connection.put(local, address, rkey).wait()
        connection.flush().wait()

    for name, verb in (
        ("put + flush of 64 B", put_and_flush),
        ("get of 64 B", lambda: connection.get(local, address, rkey).wait()),
        ("fetch_add", lambda: connection.fetch_add(address + 4096, rkey, 1).wait()),
    ):
        (took,) = _fastest(10, 100, verb)
        yield Row(
            name=f"rdma tcp: {name}",
            measured=f"{took * 1e6:.1f} us",
            peer="",
            ratio=None,
            goal="",
            met=True,
            includes="loopback; the owner sleeps until its progress thread is woken",
        )
    yield _messages(bench, "tcp")
    yield _death(bench, "tcp")
    bench.close()


def _messages(bench: _Bench, medium: str) -> Row:
    """Send and receive, there and back; one way is half of it."""
    into, out = bytearray(_SMALL), bytes(_SMALL)
    bench.pipe.send("echo")
    times = []
    for _ in range(400):
        start = time.perf_counter()
        received = bench.connection.recv(into)
        bench.connection.send(out)
        received.wait()
        times.append(time.perf_counter() - start)
    bench.connection.send(b"end").wait()
    bench.pipe.recv()
    return Row(
        name=f"rdma {medium}: send and receive of 64 B, one way",
        measured=f"{sorted(times)[len(times) // 2] / 2 * 1e6:.1f} us",
        peer="",
        ratio=None,
        goal="",
        met=True,
        includes="median; both sides wait by threads",
    )


def _death(bench: _Bench, medium: str) -> Row:
    took = bench.kill()
    return Row(
        name=f"rdma {medium}: SIGKILL to the error of a posted receive",
        measured=f"{took * 1e3:.1f} ms",
        peer="",
        ratio=took,
        goal="under a second",
        met=took < 1,
        includes="from the call that kills",
    )


def _beside_ucxx(ours_seconds: float) -> Row:
    python = os.environ.get("HAL_BENCH_UCXX", "")
    includes = "ucxx: asyncio endpoints, send and receive there and back, half of it, median of 500, mode 'polling'"
    name, goal = "rdma shm: put + flush of 64 B beside ucxx's asyncio", "at least 5 times faster"
    if not python:
        return Row(name, "not run", "HAL_BENCH_UCXX names no interpreter with ucxx", None, goal, True, includes)
    environ = {**os.environ, "UCXPY_PROGRESS_MODE": "polling", "UCX_TLS": "posix,cma,tcp,self"}
    done = subprocess.run([python, str(_PEER)], env=environ, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        return Row(name, "not run", done.stderr.strip().splitlines()[-1][:120], None, goal, True, includes)
    theirs = json.loads(done.stdout.splitlines()[-1])["one_way_seconds"]
    return Row(
        name=name,
        measured=f"{ours_seconds * 1e6:.2f} us",
        peer=f"ucxx: {theirs * 1e6:.1f} us",
        ratio=theirs / ours_seconds,
        goal=goal,
        met=theirs >= 5 * ours_seconds,
        includes=includes,
    )


def _open(environ: dict[str, str], folder: Path, name: str) -> Any:
    from hal.drivers.contract import HostRoot
    from hal.drivers.guard import GuardPages
    from hal.interfaces.deadline import Deadline
    from hal_rdma.driver import RdmaDriver

    driver = RdmaDriver((HostRoot(node="bench"),), environ)
    device = next(found for found in driver.discover(Deadline.after(10)).devices if found.name == name)
    pages = GuardPages(folder / f"guards-{name}")
    pages.grant(device.id, 1)
    return driver.open(device.id, pages.guard(device.id, "bench", 1), Deadline.after(10))


def _far(pipe: Any, environ: dict[str, str], folder: str) -> None:
    """The other process: a NIC that sleeps, and a bare worker that is moved now and then."""
    from hal.interfaces.rnic import ALL_ACCESS
    from hal_rdma.ucx.context import Context
    from hal_rdma.ucx.library import choose_library, load_library
    from hal_rdma.ucx.transport import UcxTransport
    from hal_rdma.ucx.worker import Worker

    nic = _open(environ, Path(folder), "far")
    region = nic.register(_LARGE, ALL_ACCESS)
    endpoint = nic.endpoint(rnr_timeout_seconds=5)
    connection = endpoint.connect(pipe.recv())
    transport: UcxTransport = nic._transport
    context = Context(load_library(choose_library(environ, software=True)), transport.settings, "bare")
    worker, mapped = Worker(context), context.map(None, _LARGE)
    pipe.send(
        {
            "endpoint": endpoint.address,
            "address": region.address,
            "rkey": region.rkey,
            "settings": transport.settings,
            "library": transport.library.words.partition(":")[0] + ")",
            "bare_worker": worker.address,
            "bare_address": mapped.address,
            "bare_rkey": mapped.packed,
        }
    )
    buffer = bytearray(_SMALL)
    while True:
        while not pipe.poll(0):
            worker.progress()
            time.sleep(0.0005)
        pipe.recv()
        while (length := connection.recv(buffer).wait()) != 3:
            connection.send(memoryview(buffer)[:length])
        pipe.send("done")


def _fastest(rounds: int, number: int, *works: Work) -> list[float]:
    # In turns, and the quietest round of each: a shared machine has fast and slow seconds.
    best = [float("inf")] * len(works)
    for _ in range(rounds):
        for index, work in enumerate(works):
            best[index] = min(best[index], timeit.timeit(work, number=number) / number)
    return best
