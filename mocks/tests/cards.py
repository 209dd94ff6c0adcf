"""A mock BlueField card for tests: the first of the BlueField host, changed as a test wants it."""

from __future__ import annotations

import msgspec

from hal.drivers.contract import Grant
from hal.drivers.guard import OpenGuard
from hal.interfaces.deadline import Deadline
from hal_mocks.dpu import MockDpuDriver
from hal_mocks.dpu_handle import MockDpu
from hal_mocks.graph import Graph
from hal_mocks.machine import Machine
from hal_mocks.profile import load_profile

BFB = b"Bf\x02\x13" + b"boot" * 100_000
SOON = 10.0


def graph(**fields: object) -> Graph:
    """The BlueField host with some fields of its first card replaced."""
    whole = load_profile("bluefield-host", seed=7)
    host = whole.hosts[0]
    card = msgspec.structs.replace(host.dpus[0], **fields)
    return msgspec.structs.replace(whole, hosts=(msgspec.structs.replace(host, dpus=(card, *host.dpus[1:])),))


def open_card(machine: Machine, fence: int = 1) -> MockDpu:
    driver = MockDpuDriver(machine)
    dpu_id = f"dpu-{machine.graph.hosts[0].dpus[0].serial}"
    driver.prepare(dpu_id, Grant(lease="test", fence=fence), Deadline.after(SOON))
    return driver.open(dpu_id, OpenGuard(lease="test", fence=fence), Deadline.after(SOON))
