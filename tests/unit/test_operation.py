"""One verb, two faces: what asyncio awaits is what a thread waits for."""

from __future__ import annotations

import asyncio
import threading

import pytest

from hal.errors import DeadlineExceeded, DeviceGone
from hal.interfaces.deadline import Deadline
from hal.interfaces.operation import Operation


def faces(operation: Operation[int]) -> list[int]:
    async def awaited() -> int:
        return await operation

    return [operation.wait(Deadline.after(10)), asyncio.run(awaited())]


def test_both_faces_give_the_result():
    assert faces(Operation.spawn("gpu0", "copy", lambda operation: 42)) == [42, 42]
    assert faces(Operation.completed(7)) == [7, 7]


def test_both_faces_raise_the_error_of_the_verb():
    failed: Operation[int] = Operation.failed(DeviceGone("lost", device="gpu0"))

    async def awaited() -> int:
        return await failed

    with pytest.raises(DeviceGone):
        failed.wait()
    with pytest.raises(DeviceGone):
        asyncio.run(awaited())
    assert isinstance(failed.error(), DeviceGone)


def test_waiting_too_long_leaves_it_running_and_its_outcome_unknown():
    end = threading.Event()
    operation = Operation.spawn("gpu0", "reset", lambda running: end.wait(30))
    with pytest.raises(DeadlineExceeded, match="gpu0 during reset: not finished in time; the outcome is unknown"):
        operation.wait(Deadline.after(0.01))
    assert not operation.done
    end.set()
    assert operation.wait(Deadline.after(30)) is True


def test_many_are_awaited_at_once_and_progress_is_told():
    go = threading.Event()

    def work(operation: Operation[float]) -> float:
        operation.report(0.5)
        go.wait(30)
        return operation.progress or 0.0

    async def all_of_them() -> list[float]:
        running = [Operation.spawn("d", "s", work) for _ in range(8)]
        asyncio.get_running_loop().call_soon(go.set)
        return list(await asyncio.gather(*running))

    assert asyncio.run(all_of_them()) == [0.5] * 8


def test_the_first_completion_stands_and_callbacks_come_once():
    operation: Operation[int] = Operation("d", "s")
    calls: list[str] = []
    operation.on_done(lambda: calls.append("before"))
    operation.succeed(1)
    operation.fail(DeviceGone("late"))
    operation.succeed(2)
    operation.on_done(lambda: calls.append("after"))
    assert operation.wait() == 1
    assert calls == ["before", "after"]


def test_it_may_complete_after_the_loop_that_awaited_it_has_gone():
    operation: Operation[int] = Operation("d", "s")

    async def impatient() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.ensure_future(operation), 0.01)

    asyncio.run(impatient())
    operation.succeed(3)
    assert operation.wait() == 3


def test_a_deadline_is_one_point_however_often_it_is_passed_down():
    deadline = Deadline.after(60)
    assert 59 < deadline.remaining_seconds <= 60
    assert Deadline.never().timeout is None
    past = Deadline.after(-1)
    assert past.remaining_seconds == 0.0
    with pytest.raises(DeadlineExceeded, match="gpu0 during open"):
        past.check(device="gpu0", during="open")
