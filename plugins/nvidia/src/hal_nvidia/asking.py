"""Asking GPUs within a deadline, though a call of NVML may never return.

One thread asks all GPUs in turn. One that keeps it waiting too long is left with that thread, which is abandoned, and
another goes on with the rest; until the abandoned call returns nobody asks that GPU again, so that a dead GPU costs one
thread, not one a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from hal.drivers.guarded import Call
from hal.errors import DeadlineExceeded
from hal.interfaces.deadline import Deadline
from hal_nvidia import errors as e
from hal_nvidia.board import Board
from hal_nvidia.library import Library

T = TypeVar("T")
PATIENCE_SECONDS = (1.0, 5.0)
"""How long one GPU may keep the others waiting, at least and at most: a busy machine is not a GPU that hangs."""


class _Turn(Generic[T]):
    """What the asking thread has come to."""

    __slots__ = ("answers", "errors", "position")

    def __init__(self) -> None:
        self.answers: dict[str, T] = {}
        self.errors: dict[str, BaseException] = {}
        self.position = 0


def ask_all(
    library: Library, boards: Sequence[Board], work: Callable[[Board], T], deadline: Deadline, step: str
) -> tuple[dict[str, T], dict[str, BaseException]]:
    """Call ``work`` with every GPU; return answers and errors by id. No answer in time is ``DeadlineExceeded``."""
    answers: dict[str, T] = {}
    errors: dict[str, BaseException] = {}
    left = []
    for board in boards:
        if board.stuck is not None and not board.stuck.finished:
            errors[board.uuid] = no_answer(board.uuid, step)
        else:
            board.stuck = None
            left.append(board)
    while left:
        turn: _Turn[T] = _Turn()
        call = Call(_asking(library, left, work, turn), step)
        asked = _wait(call, turn, deadline, len(left))
        answers.update(turn.answers)
        errors.update(turn.errors)
        if call.finished and call.error is not None:
            errors.update((board.uuid, call.error) for board in left if board.uuid not in answers)
            break
        if asked is None:
            break
        left[asked].stuck = call
        errors[left[asked].uuid] = no_answer(left[asked].uuid, step)
        left = left[asked + 1 :]
        if deadline.expired:
            errors.update((board.uuid, no_answer(board.uuid, step)) for board in left)
            break
    return answers, errors


def _asking(
    library: Library, boards: Sequence[Board], work: Callable[[Board], T], turn: _Turn[T]
) -> Callable[[], None]:
    def ask() -> None:
        with library.in_use() as nvml:
            for position, board in enumerate(boards):
                turn.position = position
                try:
                    board.refetch(nvml, library.generation)
                    turn.answers[board.uuid] = work(board)
                except Exception as error:  # a guard around the library: one GPU's failure is that GPU's
                    turn.errors[board.uuid] = error
                    board.lost = board.lost or e.code_of(error) in e.LOST
                if board.stuck is not None:
                    return  # this thread was given up while it hung; another has gone on

    return ask


def patience(deadline: Deadline, waiting: int) -> float:
    """Return how many seconds the next GPU may take: a quarter of what is left, all of it if no other one waits."""
    left = deadline.remaining_seconds
    least, most = PATIENCE_SECONDS
    return left if waiting <= 1 else min(left, max(least, min(left / 4, most)))


def _wait(call: Call[None], turn: _Turn[T], deadline: Deadline, count: int) -> int | None:
    """Return None when all were asked, else the position of the GPU that does not answer."""
    while True:
        position = turn.position
        if call.join(Deadline.after(patience(deadline, count - position))):
            return None
        if turn.position == position or deadline.expired:
            return turn.position


def ask(library: Library, board: Board, step: str, work: Callable[[Board], T], deadline: Deadline) -> T:
    """Call ``work`` with one GPU within the deadline; raise errors of hal."""
    answers, errors = ask_all(library, (board,), work, deadline, step)
    if errors:
        raise translated(errors[board.uuid], board.uuid, step)
    return answers[board.uuid]


def translated(error: BaseException, device: str, step: str) -> BaseException:
    """Return an error as hal says it; what is no error of NVML's is left as it is."""
    return error if e.code_of(error) is None else e.raised(error, device, step)


def no_answer(device: str, step: str) -> DeadlineExceeded:
    """Return the error of a GPU whose driver does not answer."""
    return DeadlineExceeded(
        "NVML does not answer for this GPU; the outcome is unknown",
        device=device,
        during=step,
        hint="look at dmesg; a GPU whose driver hangs needs a reset or a reboot",
    )
