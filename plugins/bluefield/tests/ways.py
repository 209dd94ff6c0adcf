"""Drivers over a stand-in card, as the tests want them."""

from __future__ import annotations

from hal.interfaces.deadline import Deadline
from hal.model.device import Device
from hal_bluefield.driver import BlueFieldDriver
from plugins.bluefield.tests.standin import StandIn

SOON = 20.0


def soon() -> Deadline:
    return Deadline.after(SOON)


def make(card: StandIn, **changes: object) -> BlueFieldDriver:
    made = BlueFieldDriver([card.host], card.configure(**changes))
    card.closing.append(made.close)
    return made


def seen(driver: BlueFieldDriver, card: StandIn, seconds: float = SOON) -> Device:
    return next(device for device in driver.discover(Deadline.after(seconds)).devices if device.id == card.id)
