"""A point in time after which nobody waits any longer."""

from __future__ import annotations

import time

from hal.errors import DeadlineExceeded


class Deadline:
    """A point on the monotonic clock, made once at the top and passed down unchanged.

    >>> Deadline.after(60).expired
    False
    """

    __slots__ = ("_at",)

    def __init__(self, at: float) -> None:
        self._at = at

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Return the deadline that many seconds from now."""
        return cls(time.monotonic() + seconds)

    @classmethod
    def never(cls) -> Deadline:
        """Return a deadline that does not come."""
        return cls(float("inf"))

    @property
    def remaining_seconds(self) -> float:
        """Seconds left, never below zero; ``inf`` for :meth:`never`."""
        return max(0.0, self._at - time.monotonic())

    @property
    def timeout(self) -> float | None:
        """The same as a ``timeout=`` argument of the standard library: None for :meth:`never`."""
        return None if self._at == float("inf") else self.remaining_seconds

    @property
    def expired(self) -> bool:
        """True once it has passed."""
        return time.monotonic() >= self._at

    def check(self, *, device: str | None = None, during: str | None = None) -> None:
        """Raise :class:`~hal.errors.DeadlineExceeded` if it has passed."""
        if self.expired:
            raise DeadlineExceeded(
                "the deadline has passed; the outcome is unknown",
                device=device,
                during=during,
                hint="look at the device's health before trying again",
            )

    def __repr__(self) -> str:
        return f"Deadline({self.remaining_seconds:.3f} s left)"


DEFAULT_SECONDS = 10.0


def or_default(deadline: Deadline | None, seconds: float = DEFAULT_SECONDS) -> Deadline:
    """Return the deadline, or one that many seconds from now if there is none."""
    return Deadline.after(seconds) if deadline is None else deadline
