"""How often a tenant may ask: token buckets, one for each tenant and for each of those above it that has a rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hal.api.server.config import Limits
from hal.api.wire import Limited
from hal.model.tenant import ancestry

_MOST_BUCKETS = 10_000


class Bucket:
    """So many a second, and so many at once. What is not there yet is waited for, never owed."""

    __slots__ = ("_at", "_left", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._left = burst
        self._at = now

    def wait(self, amount: float, now: float) -> float:
        """Return seconds until so much may be taken, 0 for now. More than fits at once needs a full bucket."""
        self._left = min(self.burst, self._left + max(0.0, now - self._at) * self.rate)
        self._at = now
        lack = min(amount, self.burst) - self._left
        return lack / self.rate if lack > 1e-9 else 0.0

    def take(self, amount: float) -> None:
        """Take it; more than fits at once is paid off later."""
        self._left -= amount


class Buckets:
    """All tenants' rates. ``rates`` returns what was said: claims a second by path."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self._rates: Mapping[str, float] = {}
        self._claims: dict[str, Bucket] = {}
        self._requests: dict[str, Bucket] = {}

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """Tell what was said about tenants, from now on."""
        if rates != self._rates:
            self._rates = dict(rates)
            self._claims.clear()

    def spend_claims(self, tenant: str, many: int) -> None:
        """Count claims; raise :class:`~hal.api.wire.Limited` if a tenant, or one above it, may not make them now."""
        rates = {path: self._rates[path] for path in ancestry(tenant) if path in self._rates}
        rates.setdefault(tenant, self._limits.claims_per_second)
        self._spend(self._claims, rates, many, "claims")

    def spend_request(self, tenant: str) -> None:
        """Count one request of any kind."""
        self._spend(self._requests, {tenant: self._limits.claims_per_second * 10}, 1, "requests")

    def _spend(self, buckets: dict[str, Bucket], rates: Mapping[str, float], many: int, what: str) -> None:
        now = self._clock()
        if len(buckets) > _MOST_BUCKETS:
            buckets.clear()
        chosen = []
        for path, rate in rates.items():
            bucket = buckets.get(path)
            if bucket is None:
                burst = max(1.0, rate * self._limits.burst_seconds)
                bucket = buckets[path] = Bucket(max(rate, 1e-6), burst, now)
            wait = bucket.wait(many, now)
            if wait > 0:
                error = Limited(
                    f"{path or 'everybody'} may make {rate:g} {what} a second",
                    during="claim" if what == "claims" else "ask",
                    hint=f"try again in {wait:.3g} s",
                )
                error.retry_after_seconds = wait
                raise error
            chosen.append(bucket)
        for bucket in chosen:
            bucket.take(many)
