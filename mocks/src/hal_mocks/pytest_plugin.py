"""What pytest gets from rackhal-mocks: a mock machine of its own for every test, and faults that end with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import pytest

from hal.errors import UsageError
from hal_mocks.pytest_namespace import hal_namespace as hal_namespace  # a fixture, by its name here

if TYPE_CHECKING:
    from hal_mocks.faults import Fault, FaultType
    from hal_mocks.machine import Machine

DEFAULT_PROFILE = "dgx-h100"


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker that chooses the machine."""
    config.addinivalue_line(
        "markers",
        "hal_machine(profile, seed=0, clock='virtual'): the mock machine of the test: the name of a profile, "
        "or the path of a TOML file",
    )
    config.addinivalue_line("markers", "hal_namespace(host): which host of a rack the namespace of the test shows")


@pytest.fixture
def hal_machine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A mock machine with a state folder of its own; ``HAL_MACHINE`` names it, so that child processes see it, too.

    Time is virtual unless the marker says ``clock="real"``: ``hal_machine.clock.advance(60)`` lets leases expire.
    """
    from hal_mocks.machine import open_machine

    mark = request.node.get_closest_marker("hal_machine")
    words = mark.kwargs if mark is not None else {}
    wrong = [repr(word) for word in words if word not in ("profile", "seed", "clock")]
    wrong += [repr(word) for word in (mark.args[1:] if mark is not None else ())]
    if wrong:
        raise UsageError(f"the marker hal_machine has no {wrong[0]}", hint="profile, seed, clock")
    profile = mark.args[0] if mark is not None and mark.args else words.get("profile", DEFAULT_PROFILE)
    options = {
        "state": str(tmp_path / "hal-machine"),
        "seed": words.get("seed", 0),
        "clock": words.get("clock", "virtual"),
    }
    monkeypatch.setenv("HAL_MACHINE", f"{profile}?{urlencode(options)}")
    machine = open_machine()
    assert machine is not None
    return machine


class Faults:
    """Breaks devices of the test's machine; what it broke is healed at the end of the test."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def __call__(
        self,
        device: str,
        type: FaultType | str,
        *,
        after_seconds: float = 0.0,
        duration_seconds: float | None = None,
        **details: object,
    ) -> Fault:
        """Inject a fault: ``hal_fault("gpu0", "xid", code=79)``; see :class:`hal_mocks.faults.Fault`."""
        from hal_mocks.faults import fault_type

        return self._machine.inject(
            device, fault_type(type), after_seconds=after_seconds, duration_seconds=duration_seconds, **details
        )

    def heal(self, device: str | None = None) -> int:
        """Take the faults of a device away, or all; returns how many."""
        return self._machine.heal(device)


@pytest.fixture
def hal_fault(hal_machine: Machine) -> Iterator[Faults]:
    """Call it to break a device of ``hal_machine``."""
    faults = Faults(hal_machine)
    yield faults
    faults.heal()
