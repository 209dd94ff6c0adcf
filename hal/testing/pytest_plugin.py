"""What pytest gets from hal: declared lacks are left out and listed; fixtures for mock machines and brokers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hal.agent.survey import Survey
    from hal.api.local import LocalBroker
    from hal.model.device import Device

_LACKS = pytest.StashKey[dict[str, set[str]]]()


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker of the conformance kit."""
    config.addinivalue_line("markers", "hal_needs(ability): a conformance check that a driver may declare to lack")
    config.stash[_LACKS] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take out the checks of declared lacks, and remember them for the summary."""
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        cls = getattr(item, "cls", None)
        lacks: frozenset[str] = getattr(cls, "lacks", frozenset())
        wanted = {mark.args[0] for mark in item.iter_markers("hal_needs")}
        if wanted & lacks:
            config.stash[_LACKS].setdefault(cls.__name__ if cls else item.name, set()).update(wanted & lacks)
            left_out.append(item)
        else:
            kept.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """List what the examined drivers declare to lack."""
    lacks = config.stash[_LACKS]
    if lacks:
        terminalreporter.section("declared lacks of drivers")
        for name, abilities in sorted(lacks.items()):
            terminalreporter.line(f"{name}: {', '.join(sorted(abilities))}")


def _machine(request: pytest.FixtureRequest) -> object | None:
    """Let ``hal_machine`` (of rackhal-mocks, or of the tests themselves) set the scene first, if there is one."""
    try:
        machine: object = request.getfixturevalue("hal_machine")
        return machine
    except pytest.FixtureLookupError:
        return None


@pytest.fixture
def hal_survey(request: pytest.FixtureRequest) -> Iterator[Survey]:
    """One look at the machine: the mock one of ``hal_machine`` if rackhal-mocks is installed, else this one."""
    from hal.agent.survey import survey

    _machine(request)
    found = survey(deadline_seconds=10.0)
    yield found
    found.close()


@pytest.fixture
def hal_broker(request: pytest.FixtureRequest, hal_survey: Survey, tmp_path: Path) -> Iterator[LocalBroker]:
    """A broker over those devices, with a journal in memory; on the machine's clock if that is virtual.

    ``broker.refresh()`` looks at the devices again; ``broker.claim("gpu")`` gives a lease whose devices can be opened.
    """
    from hal.api.local import LocalBroker
    from hal.broker.journal.memory import MemoryStore

    clock = getattr(_machine(request), "clock", None)
    virtual = clock is not None and hasattr(clock, "advance")

    def observe() -> tuple[Device, ...]:
        from hal.agent.survey import survey

        return survey(deadline_seconds=10.0).inventory.devices

    with LocalBroker(
        hal_survey.drivers,
        MemoryStore(),
        tmp_path / "hal-runtime",
        observe=observe,
        clock=clock if virtual else None,
    ) as broker:
        yield broker
        for lease in broker.list():
            broker.release(lease.id)
