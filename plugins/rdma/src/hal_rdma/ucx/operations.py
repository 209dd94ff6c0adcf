"""Operations of a connection: those that were done at once, and those that UCX still works on."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from hal.interfaces.deadline import Deadline
from hal.interfaces.operation import Operation

if TYPE_CHECKING:
    from hal_rdma.ucx.link import Link

SPIN_SECONDS = 300e-6
"""How long a waiting thread moves the worker itself before it sleeps: most answers come within this time."""


def finished(device: str, step: str) -> Callable[[Any], Operation[Any]]:
    """Return what makes operations of one step that are done when they are made, in half the time of others.

    The step and the device are the class's, not each operation's.
    """

    class Finished(Operation[Any]):
        __slots__ = ()
        done = True

        def __init__(self, value: Any) -> None:
            self._result = value

        def wait(self, deadline: Deadline | None = None) -> Any:
            return self._result

        def on_done(self, callback: Callable[[], None]) -> None:
            callback()

        def _settle(self, value: Any, error: BaseException | None) -> None:
            """A second completion is ignored."""

        def __await__(self) -> Generator[Any, None, Any]:
            yield from ()
            return self._result

    # What the base class keeps in slots is the same for all of them, and stands in the class instead.
    for name, value in (("device", device), ("step", step), ("progress", None), ("_error", None)):
        setattr(Finished, name, value)
    return Finished


class Request(Operation[Any]):
    """Work that UCX, or the peer, has not finished.

    ``handle`` is UCX's request, 0 if there is none; ``keep`` what must live as long; ``value`` gives the result when
    UCX says that it is done. Whoever waits moves the worker for a moment and sleeps then.
    """

    __slots__ = ("handle", "keep", "link", "value")

    def __init__(self, link: Link, step: str, handle: int, keep: Any, value: Callable[[], Any] | None = None) -> None:
        super().__init__(link.device, step)
        self.link = link
        self.handle = handle
        self.keep = keep
        self.value = value

    def wait(self, deadline: Deadline | None = None) -> Any:
        """Move the worker for a moment, then sleep."""
        if not self.done:
            self._spin(deadline)
        return super().wait(deadline)

    def _spin(self, deadline: Deadline | None) -> None:
        link = self.link
        link.watchers += 1
        try:
            until = time.monotonic() + SPIN_SECONDS
            while not self.done:
                link.poll()
                if time.monotonic() > until or (deadline is not None and deadline.expired):
                    break
        finally:
            link.watchers -= 1
        if not self.done:
            link.rouse()

    def __await__(self) -> Generator[Any, None, Any]:
        if not self.done:
            self.link.poll()
            self.link.rouse()
        return (yield from super().__await__())
