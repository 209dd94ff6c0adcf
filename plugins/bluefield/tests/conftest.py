"""A stand-in card: its servers run once, its state is new for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from plugins.bluefield.tests.standin import StandIn


@pytest.fixture(scope="session")
def _card(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    standin = StandIn(tmp_path_factory.mktemp("bluefield"))
    yield standin
    standin.close()


@pytest.fixture
def card(_card: StandIn) -> Iterator[StandIn]:
    yield _card
    _card.renew()
