"""Opening the broker of this machine and serving it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from hal.api.opening import open_broker
from hal.api.server.config import Config
from hal.api.server.serve import Service
from hal.api.sight import Observe, Sight
from hal.api.surface import Broker
from hal.model.device import Device

LOOK_AGAIN_SECONDS = 5.0


class Sparing:
    """Looks at the devices no more often than every few seconds: each refusal asks for it, and a look takes long."""

    def __init__(self, observe: Observe, clock: Callable[[], float] = time.monotonic) -> None:
        self._observe = observe
        self._clock = clock
        self._at = float("-inf")
        self._seen: Sight | tuple[Device, ...] = ()

    def __call__(self) -> Sight | tuple[Device, ...]:
        """Return how the devices are, or were a moment ago."""
        if self._clock() - self._at >= LOOK_AGAIN_SECONDS:
            seen = self._observe()
            self._seen = seen if isinstance(seen, Sight) else tuple(seen)
            self._at = self._clock()
        return self._seen


def serve(
    config: Config,
    unix: Path,
    *,
    state: str | os.PathLike[str] | None = None,
    deadline_seconds: float = 5.0,
    ready: Callable[[list[str]], None] = lambda addresses: None,
) -> None:
    """Open the broker and serve it until SIGTERM or SIGINT; then the leases go on, and the journal is closed."""
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(open_broker(state=state, deadline_seconds=deadline_seconds, monitored=True))
        if broker.observe is not None:
            broker.observe = Sparing(broker.observe)
        service = Service(
            cast(Broker, broker),
            config,
            unix,
            maintain=broker.maintain,
            look=broker.refresh,
            head=lambda: broker.state.revision,
            devices=lambda: tuple(broker.state.devices.values()),
            trail=broker.ledger.store,
        )
        service.run(ready)
