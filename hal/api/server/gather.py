"""Group commit over connections: whatever arrived while the last commit ran is decided in the next one, together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from hal.broker.command import Answer
from hal.errors import HalError, UsageError
from hal.model.claim import Claim

MOST_AT_ONCE = 4096
_Waiter = tuple[Sequence[Claim], str, "asyncio.Future[list[Answer]]"]


class Gatherer:
    """Calls ``submit`` in one thread, one call at a time, with the claims of as many requests as are waiting."""

    def __init__(self, submit: Callable[[Sequence[Claim], Sequence[str]], list[Answer]], executor: Executor) -> None:
        self._submit = submit
        self._executor = executor
        self._waiting: list[_Waiter] = []
        self._running: asyncio.Task[None] | None = None
        self.commits = 0
        self.claims = 0

    async def submit(self, claims: Sequence[Claim], actor: str) -> list[Answer]:
        """Return what became of each claim that ``actor`` makes; whoever stops waiting changes nothing of that."""
        if not claims:
            return []
        future: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()
        self._waiting.append((claims, actor, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                together = self._take()
                try:
                    await self._commit(together)
                except BaseException as error:
                    for _, _, future in together:
                        if not future.done():
                            future.set_exception(error if isinstance(error, Exception) else RuntimeError("stopped"))
                    if not isinstance(error, Exception):
                        raise
        finally:
            self._running = None

    def _take(self) -> list[_Waiter]:
        """Take what goes into one commit; a request is never parted, and the first goes whatever its size."""
        many = taken = 0
        for claims, _, _ in self._waiting:
            if taken and many + len(claims) > MOST_AT_ONCE:
                break
            many += len(claims)
            taken += 1
        together, self._waiting = self._waiting[:taken], self._waiting[taken:]
        return together

    async def _commit(self, together: list[_Waiter]) -> None:
        loop = asyncio.get_running_loop()
        everything = [claim for claims, _, _ in together for claim in claims]
        actors = [actor for claims, actor, _ in together for _ in claims]
        self.commits += 1
        self.claims += len(everything)
        try:
            answers = await loop.run_in_executor(self._executor, self._submit, everything, actors)
        except UsageError as error:
            if len(together) == 1:
                _fail(together[0][2], error)
                return
            for waiter in together:  # one of them makes no sense: the others shall not suffer. Asking twice is safe
                await self._commit([waiter])
            return
        except HalError as error:
            for _, _, future in together:
                _fail(future, error)
            return
        start = 0
        for claims, _, future in together:
            if not future.done():
                future.set_result(answers[start : start + len(claims)])
            start += len(claims)


def _fail(future: asyncio.Future[list[Answer]], error: HalError) -> None:
    if not future.done():
        future.set_exception(error)
