"""What the NVIDIA plugin adds to NVML: a sample of eight GPUs, and telemetry, beside the same calls made bare."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.rows import Row

LIMIT = 1.3
_ROUNDS = 1500


def run() -> Iterator[Row]:
    from hal.drivers.contract import HostRoot
    from hal.drivers.guard import GuardPages
    from hal.interfaces.deadline import Deadline
    from hal_mocks.machine import open_machine
    from hal_mocks.nvml import stage
    from hal_nvidia.driver import NvidiaDriver
    from hal_nvidia.library import Library

    with tempfile.TemporaryDirectory() as scratch:
        machine = open_machine({"HAL_MACHINE": f"dgx-h100?state={scratch}/state"})
        host = machine.graph.hosts[0]
        environ = stage(machine, host.name)
        os.environ.update(environ)
        pynvml = _binding(environ["LD_LIBRARY_PATH"].split(":")[0])
        driver = NvidiaDriver((HostRoot(node=host.name),), {"XDG_RUNTIME_DIR": scratch}, Library())
        driver.discover(Deadline.after(30))
        uuids = [gpu.uuid for gpu in host.gpus]
        assert driver.sample(uuids, Deadline.after(30)) == [], "the machine is healthy"
        handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
        bare_calls = [call for handle in handles for call in _calls(pynvml, handle)]
        events = _listening(pynvml, handles)
        bare = partial(_make, pynvml, [*bare_calls, partial(pynvml.nvmlEventSetWait, events, 0)])
        made = len(bare_calls) + 1
        yield _row("nvidia: sample of 8 GPUs", lambda: driver.sample(uuids, Deadline.after(5)), bare, made)
        pages = GuardPages(Path(scratch, "guards"))
        opened = []
        for uuid in uuids:
            pages.grant(uuid, 1)
            opened.append(driver.open(uuid, pages.guard(uuid, "bench", 1), Deadline.after(30)))
        bare = partial(_make, pynvml, bare_calls)
        yield _row(
            "nvidia: telemetry of 8 opened GPUs",
            lambda: [gpu.telemetry() for gpu in opened],
            bare,
            made - 1,
            limit=None,
        )


def _row(
    name: str, work: Callable[[], object], peer: Callable[[], object], calls: int, limit: float | None = LIMIT
) -> Row:
    took, bare = _fastest(work, peer)
    return Row(
        name=name,
        measured=f"{took * 1e6:.0f} us",
        peer=f"pynvml, the same {calls} calls: {bare * 1e6:.0f} us",
        ratio=took / bare,
        goal="at most 1.3 times the bare calls" if limit is not None else "none: eight leases, 25 attributes each",
        met=limit is None or took / bare <= limit,
        includes="fake library, one thread that can be abandoned, conditions judged, best of interleaved rounds",
    )


def _binding(folder: str) -> Any:
    import ctypes

    import pynvml

    pynvml.nvmlLib = ctypes.CDLL(f"{folder}/libnvidia-ml.so.1")  # LD_LIBRARY_PATH is read when a process starts
    pynvml.nvmlInit()
    return pynvml


def _calls(pynvml: Any, handle: Any) -> list[Callable[[], Any]]:
    """Return the calls of the plugin's sample, without those that this board answers with "not supported"."""
    from hal_nvidia.sampling import CALLS, FIELDS

    links = range(len([link for link in range(36) if _answers(pynvml.nvmlDeviceGetNvLinkState, handle, link)]))
    calls: list[Callable[[], Any]] = [
        partial(getattr(pynvml, function), handle, *arguments)
        for _, function, arguments in CALLS
        if _answers(getattr(pynvml, function), handle, *arguments)
    ]
    calls += [partial(pynvml.nvmlDeviceGetNvLinkState, handle, link) for link in links]
    told = pynvml.nvmlDeviceGetFieldValues(handle, FIELDS)
    fields = tuple(field for field, value in zip(FIELDS, told, strict=True) if value.nvmlReturn == 0)
    return [*calls, partial(pynvml.nvmlDeviceGetFieldValues, handle, fields)]


def _answers(function: Callable[..., Any], *arguments: Any) -> bool:
    import pynvml

    try:
        function(*arguments)
    except pynvml.NVMLError:
        return False
    return True


def _listening(pynvml: Any, handles: list[Any]) -> Any:
    events = pynvml.nvmlEventSetCreate()
    for handle in handles:
        pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlDeviceGetSupportedEventTypes(handle), events)
    return events


def _make(pynvml: Any, calls: list[Callable[[], Any]]) -> None:
    for call in calls:
        try:
            call()
        except pynvml.NVMLError:
            pass  # the wait for events, which times out


def _fastest(work: Callable[[], object], peer: Callable[[], object]) -> tuple[float, float]:
    # In turns, because a shared machine has fast and slow seconds; the fastest round is the one nobody disturbed.
    took = bare = float("inf")
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        work()
        middle = time.perf_counter()
        peer()
        took = min(took, middle - start)
        bare = min(bare, time.perf_counter() - middle)
    return took, bare
