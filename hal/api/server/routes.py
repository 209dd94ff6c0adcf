"""The table of everything the server answers: the same for the routing and for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from hal.api.server.callers import Caller
from hal.api.wire import BadRequest


@dataclass(frozen=True)
class Param:
    """One parameter of the path or the query."""

    name: str
    type: Literal["string", "integer", "number"]
    says: str
    where: Literal["path", "query", "header"] = "query"
    minimum: float | None = None
    maximum: float | None = None
    required: bool = False

    def read(self, text: str) -> Any:
        """Return the value, or raise :class:`~hal.api.wire.BadRequest`."""
        if self.type == "string":
            if not text or len(text) > 256 or not text.isprintable():
                raise self._bad(text, "1 to 256 printable characters")
            return text
        try:
            if not (text.isascii() and text == text.strip() and "_" not in text and len(text) <= 32):
                raise ValueError
            value: float = int(text) if self.type == "integer" else float(text)
        except ValueError:
            raise self._bad(text, f"a{'n' if self.type == 'integer' else ''} {self.type}") from None
        low, high = self.minimum, self.maximum
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            raise self._bad(text, f"from {low:g} to {high:g}" if high is not None else f"{low:g} or more")
        return value

    def _bad(self, text: str, hint: str) -> BadRequest:
        return BadRequest(f"{self.name} is {text[:80]!r}", during="ask", hint=f"{self.name}: {hint}")


@dataclass
class Ask:
    """One request, understood: who asks, and what. Handlers may set the status of their answer."""

    caller: Caller
    values: dict[str, Any]
    body: Any = None
    status: int = 200
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)

    def get(self, name: str) -> Any:
        """Return a parameter, None if it was not given."""
        return self.values.get(name)


Handler = Callable[[Ask], Awaitable[msgspec.Struct | None]]


@dataclass(frozen=True)
class Route:
    """One method of one path. ``replies`` are the good answers by status, ``fails`` the statuses of its problems."""

    method: str
    path: str
    name: str
    says: str
    handler: Handler
    replies: dict[int, Any]
    fails: tuple[int, ...] = ()
    params: tuple[Param, ...] = ()
    body: Any = None
    public: bool = False
    operator: bool = False
    stream: bool = False
    example: Any = None
