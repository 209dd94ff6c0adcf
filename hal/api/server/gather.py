"""Group commit over connections: whatever arrived while the last commit ran is decided in the next one, together.

One thread decides and commits, and goes on to the next without asking anybody; a batch crosses to it once, and what
became of it crosses back once.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from queue import Empty, SimpleQueue

from hal.broker.command import Answer
from hal.errors import UsageError
from hal.model.claim import Claim

MOST_AT_ONCE = 4096
_Waiter = tuple[Sequence[Claim], str, "asyncio.Future[list[Answer]]"]
_Outcome = tuple["asyncio.Future[list[Answer]]", "list[Answer] | Exception"]


class Gatherer:
    """Calls ``submit`` in one thread, one call at a time, with the claims of as many requests as are waiting."""

    def __init__(self, submit: Callable[[Sequence[Claim], Sequence[str]], list[Answer]]) -> None:
        self._submit = submit
        self._waiting: SimpleQueue[_Waiter | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._left_over: _Waiter | None = None
        self._closed = False
        self.commits = 0
        self.claims = 0

    async def submit(self, claims: Sequence[Claim], actor: str) -> list[Answer]:
        """Return what became of each claim that ``actor`` makes; whoever stops waiting changes nothing of that."""
        if not claims:
            return []
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="hal-commit", daemon=True)
            self._thread.start()
        future: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()
        self._waiting.put((claims, actor, future))
        return await future

    def close(self) -> None:
        """End the thread; the commit that it has begun is finished first, and what waits is not begun."""
        self._closed = True
        self._waiting.put(None)
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while not self._closed:
            together = self._take()
            if together:
                outcomes = self._commit(together)
                try:
                    together[0][2].get_loop().call_soon_threadsafe(_tell, outcomes)
                except RuntimeError:
                    return  # the loop is closed: nobody listens any more

    def _take(self) -> list[_Waiter]:
        """Take what goes into one commit; a request is never parted, and the first goes whatever its size."""
        first, self._left_over = self._left_over or self._waiting.get(), None
        if first is None:
            return []
        together, many = [first], len(first[0])
        while many < MOST_AT_ONCE:
            try:
                other = self._waiting.get_nowait()
            except Empty:
                break
            if other is None or many + len(other[0]) > MOST_AT_ONCE:
                self._left_over = other
                break
            together.append(other)
            many += len(other[0])
        return together

    def _commit(self, together: Sequence[_Waiter]) -> list[_Outcome]:
        if len(together) == 1:
            everything, actor, _ = together[0]
            actors = [actor] * len(everything)
        else:
            everything = [claim for claims, _, _ in together for claim in claims]
            actors = [actor for claims, actor, _ in together for _ in claims]
        self.commits += 1
        self.claims += len(everything)
        try:
            answers = self._submit(everything, actors)
        except UsageError as error:
            if len(together) > 1:  # one of them makes no sense: the others shall not suffer. Asking twice is safe
                return [outcome for waiter in together for outcome in self._commit([waiter])]
            return [(together[0][2], error)]
        except Exception as error:  # a guard: whoever waits is told, and the next commit may be a better one
            return [(future, error) for _, _, future in together]
        outcomes: list[_Outcome] = []
        start = 0
        for claims, _, future in together:
            outcomes.append((future, answers[start : start + len(claims)]))
            start += len(claims)
        return outcomes


def _tell(outcomes: Iterable[_Outcome]) -> None:
    for future, outcome in outcomes:
        if future.done():
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
