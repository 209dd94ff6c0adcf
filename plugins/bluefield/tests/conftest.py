"""A stand-in card: its servers run once, its state is new for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hal.drivers.guard import OpenGuard
from hal_bluefield.driver import BlueFieldDriver
from hal_bluefield.handle import BlueField
from plugins.bluefield.tests.standin import StandIn
from plugins.bluefield.tests.ways import make, soon


@pytest.fixture(scope="session")
def _card(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    standin = StandIn(tmp_path_factory.mktemp("bluefield"))
    yield standin
    standin.close()


@pytest.fixture
def card(_card: StandIn) -> Iterator[StandIn]:
    yield _card
    _card.renew()


@pytest.fixture
def driver(card: StandIn) -> BlueFieldDriver:
    return make(card)


@pytest.fixture
def dpu(card: StandIn, driver: BlueFieldDriver) -> Iterator[BlueField]:
    with driver.open(card.id, OpenGuard(fence=5), soon()) as handle:
        yield handle
