"""What the core offers to the authors of drivers: fences that outlive a process, handles that know their end."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.drivers.contract import Grant
from hal.drivers.fences import Fences, fence_folder
from hal.drivers.guard import GuardPages, OpenGuard
from hal.drivers.opened import OpenedDevice
from hal.errors import AccessDenied, DeadlineExceeded, InvalidArgument, LeaseEnded, StaleFence
from hal.interfaces.deadline import Deadline
from hal.model.device import Device, Location
from hal.model.kind import Kind

DEVICE = Device(id="d-1", kind=Kind.PMEM, name="region0", driver="test", location=Location(node="n"))


def _raise_many(folder: str, first: int) -> None:
    fences = Fences(Path(folder))
    for number in range(first, 200, 2):
        try:
            fences.raise_to("d", Grant(lease="l", fence=number), "prepare")
        except StaleFence:
            continue


@given(numbers=st.lists(st.integers(min_value=1, max_value=1 << 62), min_size=1, max_size=12))
def test_a_fence_only_grows(tmp_path_factory: pytest.TempPathFactory, numbers: list[int]) -> None:
    folder = tmp_path_factory.mktemp("fences")
    highest = 0
    for number in numbers:
        fences = Fences(folder)  # a new process remembers
        if number < highest:
            with pytest.raises(StaleFence):
                fences.raise_to("d", Grant(lease="l", fence=number), "prepare")
        else:
            fences.raise_to("d", Grant(lease="l", fence=number), "prepare")
        highest = max(highest, number)


def test_two_processes_agree_on_the_highest_fence(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_raise_many, args=(str(tmp_path), first)) for first in (1, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    with pytest.raises(StaleFence, match="199"):
        Fences(tmp_path).raise_to("d", Grant(lease="l", fence=198), "prepare")


def test_devices_do_not_share_a_fence(tmp_path: Path) -> None:
    fences = Fences(tmp_path)
    fences.raise_to("a/b", Grant(lease="l", fence=9), "prepare")
    fences.raise_to("a_b", Grant(lease="l", fence=1), "prepare")


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AccessDenied, match="fence file") as caught:
        Fences(tmp_path / "file" / "below").raise_to("d", Grant(lease="l", fence=1), "prepare")
    assert caught.value.device == "d"


def test_fences_lie_in_the_runtime_folder(tmp_path: Path) -> None:
    assert fence_folder({"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / "hal" / "fences"
    assert fence_folder({"XDG_RUNTIME_DIR": "relative"}).is_absolute()


def test_a_handle_asks_lease_deadline_and_state_in_this_order(tmp_path: Path) -> None:
    pages = GuardPages(tmp_path)
    pages.grant("d-1", 5)
    handle = OpenedDevice(DEVICE, pages.guard("d-1", "lease", 5))
    handle._enter("use")
    with pytest.raises(DeadlineExceeded):
        handle._enter("use", Deadline.after(0))
    handle.close()
    handle.close()
    with pytest.raises(InvalidArgument, match="closed"):
        handle._enter("use")
    pages.revoke("d-1", 5)
    with pytest.raises(LeaseEnded):
        handle._enter("use", Deadline.after(0))


def test_what_a_handle_holds_is_released_once() -> None:
    released: list[int] = []

    class Handle(OpenedDevice):
        def _release(self) -> None:
            released.append(1)

    with Handle(DEVICE, OpenGuard()) as handle:
        assert handle.device is DEVICE
    handle.close()
    assert released == [1]


def test_a_forked_child_is_told_that_the_handle_is_not_its_own() -> None:
    handle = OpenedDevice(DEVICE, OpenGuard())
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            handle._enter("use")
            os.write(writer, b"let through")
        except InvalidArgument as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    assert b"forked" in os.read(reader, 1000)
    os.close(reader)
    handle._enter("use")
