"""One after the other for one thing, side by side for different things."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Turn:
    __slots__ = ("lock", "wanted")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.wanted = 0


class Turns:
    """Locks by name, made when they are needed and gone when nobody holds or awaits them."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._turns: dict[str, _Turn] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Wait for one's turn with a name, and have it."""
        with self._mutex:
            turn = self._turns.get(name)
            if turn is None:
                turn = self._turns[name] = _Turn()
            turn.wanted += 1
        try:
            with turn.lock:
                yield
        finally:
            with self._mutex:
                turn.wanted -= 1
                if not turn.wanted:
                    del self._turns[name]

    def __len__(self) -> int:
        return len(self._turns)
