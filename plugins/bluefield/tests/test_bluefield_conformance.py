"""The conformance kit over the stand-in card."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest

from hal.model.device import Device
from hal.testing.kinds.dpu import DpuConformance
from hal_bluefield.driver import BlueFieldDriver
from plugins.bluefield.tests.standin import StandIn


class TestBlueField3(DpuConformance):
    lacks = frozenset({"nvme", "offload:crc32", "offload:sha", "offload:compress", "offload:decompress", "offload:aes"})
    boot_seconds: ClassVar[float] = 30.0

    @pytest.fixture
    def driver(self, card: StandIn) -> Iterator[BlueFieldDriver]:
        driver = BlueFieldDriver([card.host], card.configure())
        yield driver
        driver.close()

    @pytest.fixture
    def device(self, driver: BlueFieldDriver, card: StandIn) -> Device:
        from hal.interfaces.deadline import Deadline

        return next(device for device in driver.discover(Deadline.after(10)).devices if device.id == card.id)
