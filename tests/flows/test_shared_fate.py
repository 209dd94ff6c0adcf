"""Parents and children: what a reset, a division or a loss of one means for the leases of the others."""

from __future__ import annotations

import numpy as np
import pytest

from hal.errors import ClaimRefused, DeviceError, DeviceGone, OutOfMemory, TransferError
from hal.interfaces.deadline import Deadline
from hal.interfaces.dpu import BootState
from hal.interfaces.rnic import ALL_ACCESS, ConnectionState, PortState
from hal_mocks.dpu_state import begin_boot, boot_state
from hal_mocks.gpu import MockGpuDriver
from hal_mocks.rnic import MockRnicDriver
from hal_mocks.upmem import MockUpmemDriver

SOON = Deadline.after(600)


def parent_of(machine, driver, device):
    return next(found.parent for found in driver(machine).discover(SOON).devices if found.id == device.id)


@pytest.mark.hal_machine("bluefield-host")
def test_a_dpu_and_its_nics_are_never_two_peoples(hal_machine, hal_broker):
    with hal_broker.claim("dpu") as card, card.open() as dpu, pytest.raises(ClaimRefused, match="shares its fate"):
        hal_broker.claim("rnic", where=f"id == '{dpu.children()[0]}'")


@pytest.mark.hal_machine("bluefield-host")
def test_a_reset_of_a_dpu_breaks_its_nics_until_it_is_ready(hal_machine, hal_broker):
    nics = [device for device in MockRnicDriver(hal_machine).discover(SOON).devices if device.parent]
    with hal_broker.claim("rnic", where=f"id == '{nics[0].id}'") as lease, lease.open() as nic:
        near, far = nic.endpoint(), nic.endpoint()
        connection = near.connect(far.address)
        far.connect(near.address)
        region = nic.register(4096, ALL_ACCESS)
        connection.put(b"12345678", region.address, region.rkey).wait(SOON)
        begin_boot(hal_machine, nics[0].parent)
        with pytest.raises(DeviceGone):
            nic.register(16)
        assert boot_state(hal_machine, nics[0].parent)[0] is not BootState.READY
        hal_machine.clock.advance(150)
        with pytest.raises(TransferError):
            connection.put(b"12345678", region.address, region.rkey).wait(SOON)
        assert all(port.state is PortState.ACTIVE for port in nic.ports())
        near, far = nic.endpoint(), nic.endpoint()
        assert near.connect(far.address).state is ConnectionState.RTS


@pytest.mark.hal_machine("dgx-h100")
def test_partitions_are_made_claimed_used_and_taken_away(hal_machine, hal_broker):
    driver = MockGpuDriver(hal_machine)
    gpu = next(d.id for d in driver.discover(SOON).devices if d.name == "gpu0")
    driver.set_partitioning(gpu, True)
    driver.reset(gpu).wait(SOON)
    made = driver.create_partition(gpu, "3g.40gb").wait(SOON)
    hal_broker.refresh()
    with hal_broker.claim("gpu", where=f"id == '{made.id}'") as lease:
        assert parent_of(hal_machine, MockGpuDriver, lease.devices[0]) == gpu
        assert lease.env()["CUDA_VISIBLE_DEVICES"] == made.id
        with lease.open() as part:
            data = np.arange(10)
            assert np.array_equal(part.copy_to_host(part.copy_to_device(data)), data)
            with pytest.raises(OutOfMemory):
                part.allocate(made.memory_bytes + 1)
            with pytest.raises(DeviceError, match="uses it"):
                driver.destroy_partition(gpu, made.id).wait(SOON)
            with pytest.raises(ClaimRefused):
                hal_broker.claim("gpu", where=f"id == '{gpu}'")
            hal_machine.inject(gpu, "xid", code=79)
            with pytest.raises(DeviceGone) as caught:
                part.copy_to_device(data)
            assert caught.value.device == made.id
    with pytest.raises(ClaimRefused):
        hal_broker.claim("gpu", where=f"id == '{made.id}'")
    hal_machine.heal(gpu)
    driver.destroy_partition(gpu, made.id).wait(SOON)


@pytest.mark.hal_machine("upmem-server")
def test_a_lost_dimm_takes_its_ranks_and_no_others(hal_machine, hal_broker):
    with hal_broker.claim("upmem") as lease, lease.open() as rank:
        device = lease.devices[0]
        dimm = parent_of(hal_machine, MockUpmemDriver, device)
        hal_machine.inject(dimm, "lost")
        with pytest.raises(DeviceGone) as caught:
            rank.status()
        assert "lost" in str(caught.value)
    for sibling in (0, 1):
        with pytest.raises(ClaimRefused):
            hal_broker.claim("upmem", where=f"id == '{device.id[:-1]}{sibling}'")
    with hal_broker.claim("upmem") as other:
        assert parent_of(hal_machine, MockUpmemDriver, other.devices[0]) != dimm


@pytest.mark.hal_machine("upmem-server")
def test_a_hung_dimm_costs_its_ranks_the_callers_deadline(hal_machine, hal_broker):
    with hal_broker.claim("upmem") as lease, lease.open() as rank:
        hal_machine.inject(parent_of(hal_machine, MockUpmemDriver, lease.devices[0]), "hang")
        before = hal_machine.clock.now()
        with pytest.raises(DeviceError):
            rank.status(deadline=Deadline.after(0.5))
        assert hal_machine.clock.now() - before <= 0.5


@pytest.mark.hal_machine("optane-server")
@pytest.mark.parametrize("fault", ["lost", "hang"])
def test_a_region_shares_the_fate_of_each_of_its_dimms(hal_machine, hal_broker, fault):
    with hal_broker.claim("pmem") as lease, lease.open() as region:
        device = lease.devices[0]
        mapping = region.map(region.namespaces()[0].name)
        mapping.memcpy_persist(0, b"12345678")
        dimm = f"dimm-{region.region().dimms[-1]}"
        hal_machine.inject(dimm, fault)
        for verb in (lambda d: region.region(deadline=d), lambda d: mapping.read(0, 8, deadline=d)):
            with pytest.raises(DeviceError) as caught:
                verb(Deadline.after(0.2))
            assert caught.value.device == device.id
    with pytest.raises(ClaimRefused):
        hal_broker.claim("pmem", where=f"id == '{device.id}'")
    hal_machine.heal()
    hal_broker.refresh()
    for broken in (dimm, device.id):
        hal_broker.repair(broken, by_operator="reseated")
    with hal_broker.claim("pmem", where=f"id == '{device.id}'") as again, again.open() as region:
        assert region.map(region.namespaces()[0].name).read(0, 8) == b"12345678"
