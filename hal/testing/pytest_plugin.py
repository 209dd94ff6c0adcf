"""What pytest gets from hal: declared lacks are left out and listed; fixtures for mock machines and brokers."""

from __future__ import annotations

import pytest

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
