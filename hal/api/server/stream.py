"""Server-sent events (HTML standard, section 9.2): the history from a cursor on, without loss, as it happens."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from typing import Any

import msgspec

from hal.api.calls import LONGEST_STREAM_SECONDS
from hal.api.server.routes import Ask
from hal.api.server.veil import events_unnamed
from hal.api.server.verbs import PAGE, Verbs
from hal.api.wire import Events, Limited, problem_of
from hal.errors import HalError
from hal.model.words import counted

KEEP_ALIVE_SECONDS = 15.0
_SEND_SECONDS = 30.0
_GATHER_SECONDS = 0.005
_HEAD = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]


class Streams:
    """All event streams. Each reads the journal itself, from its own cursor; the bell says when there is more."""

    def __init__(self, verbs: Verbs, keep_alive_seconds: float = KEEP_ALIVE_SECONDS) -> None:
        self._verbs = verbs
        self._keep_alive = keep_alive_seconds
        self._open: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._open.total()

    async def run(self, ask: Ask, receive: Any, send: Any) -> None:
        """Send events until the client goes or the server ends. Raises before anything was sent if it cannot begin."""
        tenant = ask.caller.tenant
        if self._open[tenant] >= self._verbs.limits.streams_per_tenant:
            many = self._verbs.limits.streams_per_tenant
            raise Limited(
                f"{tenant} has {counted(many, 'event stream')} open", during="watch", hint="close one of them"
            )
        cursor = ask.get("last-event-id")
        cursor = (ask.get("since") or 0) if cursor is None else cursor
        self._open[tenant] += 1
        try:
            bell = self._verbs.bell
            with bell.listening() as ear:
                seen = bell.revision
                page = await self._verbs.page(ask, cursor, PAGE)
                await send({"type": "http.response.start", "status": 200, "headers": _HEAD})
                gone = asyncio.ensure_future(_gone(receive))
                try:
                    await self._follow(ask, page, seen, ear, gone, send)
                finally:
                    gone.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await gone
        finally:
            self._open[tenant] -= 1
            if not self._open[tenant]:
                del self._open[tenant]

    async def _follow(self, ask: Ask, page: Events, seen: int, ear: Any, gone: asyncio.Future[None], send: Any) -> None:
        bell = self._verbs.bell
        cursor = page.next
        seconds = ask.get("seconds")
        ends = time.monotonic() + (LONGEST_STREAM_SECONDS if seconds is None else seconds)
        await _send(send, f"retry: 1000\nid: {cursor}\n\n".encode())
        while not gone.done() and not bell.stopping:
            if page.events:
                events = page.events if ask.caller.operator else events_unnamed(page.events)
                await _send(send, b"".join(_event(event) for event in events))
            cursor = page.next
            if not page.more:
                # All that is ours up to what the bell had seen before the page was read has been sent.
                cursor = max(cursor, seen)
                left = ends - time.monotonic()
                if left <= 0:
                    break
                waiting = asyncio.ensure_future(ear.wait(min(self._keep_alive, left)))
                await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED)
                if not waiting.done():
                    waiting.cancel()
                    break
                if bell.stopping:
                    break
                if not waiting.result():
                    await _send(send, f": keep-alive\nid: {cursor}\n\n".encode())
                else:
                    await asyncio.sleep(_GATHER_SECONDS)  # what happens at once is read at once
            seen = bell.revision
            try:
                page = await self._verbs.page(ask, cursor, PAGE)
            except HalError as error:  # compacted away under a slow reader, or the journal cannot be read
                await _send(send, b"event: problem\ndata: " + msgspec.json.encode(problem_of(error)) + b"\n\n")
                break
        await asyncio.wait_for(send({"type": "http.response.body", "body": b"", "more_body": False}), _SEND_SECONDS)


def _event(event: msgspec.Struct) -> bytes:
    revision = event.revision  # type: ignore[attr-defined]
    return b"id: %d\ndata: %s\n\n" % (revision, msgspec.json.encode(event))


async def _send(send: Any, body: bytes) -> None:
    """Send, or raise ``TimeoutError`` for a client that does not read."""
    await asyncio.wait_for(send({"type": "http.response.body", "body": body, "more_body": True}), _SEND_SECONDS)


async def _gone(receive: Any) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
