"""Latched evidence stays until a repair that passed, a reboot that mends it, or an operator's word."""

from __future__ import annotations

import msgspec
import pytest

from hal.broker import command as c
from hal.errors import ClaimRefused, DeviceBusy, DeviceGone, DeviceNotFound, HardwareFault, Unsupported, UsageError
from hal.interfaces.operation import Operation
from hal.model.health import Action, Presence, Severity
from hal.model.kind import Kind
from tests.unit.broker.fake import FakeDriver, World
from tests.unit.broker.world import changed, claim, condition, device, give_back, grant, ids, run, server, state_of


def seen(state, *devices, now=1000.0):
    run(state, c.Observe(devices=devices, complete=True), now)


def latched(device_id="g0", **fields):
    return condition(device_id, latched=True, **fields)


def is_free(state, now=1000.0):
    return isinstance(run(state, c.ClaimDevices(claim=claim(f"try{state.revision}")), now), c.Granted)


def test_latched_evidence_outlives_looks_that_no_longer_show_it():
    state = state_of([device("g0", conditions=(latched(),))])
    for _ in range(2):
        seen(state, device("g0"))
    assert state.devices["g0"].conditions == (latched(),)
    revision = state.revision
    seen(state, device("g0"))
    assert state.revision == revision, "keeping it is no news"
    assert not is_free(state)


def test_level_evidence_goes_when_a_look_no_longer_shows_it():
    state = state_of([device("g0", conditions=(condition("g0"),))])
    seen(state, device("g0"))
    assert is_free(state)


def test_time_alone_clears_nothing_that_is_latched():
    state = state_of([device("g0", conditions=(latched(expires_at=1100.0),))])
    run(state, c.Expire(), now=1200.0)
    assert not is_free(state, now=1200.0)


def test_a_device_that_vanished_with_latched_evidence_is_not_forgotten():
    state = state_of([device("g0", conditions=(latched(),))])
    seen(state)
    assert state.devices["g0"].presence is Presence.MISSING
    seen(state, device("g0"))
    assert not is_free(state), "it came back, but nobody mended it"


def test_fresh_evidence_of_the_same_kind_takes_the_place_of_the_old():
    state = state_of([device("g0", conditions=(latched(code=48),))])
    seen(state, device("g0", conditions=(latched(code=48, evidence="again"),)))
    assert [found.evidence for found in state.devices["g0"].conditions] == ["again"]
    seen(state, device("g0", conditions=(latched(code=79),)))
    assert {found.code for found in state.devices["g0"].conditions} == {48, 79}


def test_a_repair_leaves_what_was_seen_after_it():
    state = state_of([device("g0", conditions=(latched(),))])
    warm = condition("g0", Severity.WARN)
    run(state, c.RepairDevice(device="g0", how="reset", conditions=(warm,)))
    assert state.devices["g0"].conditions == (warm,)
    assert is_free(state)


def test_a_repair_is_refused_while_the_device_or_its_family_is_held():
    state = state_of(
        [device("d0", Kind.DPU), device("n0", Kind.RNIC, parent="d0"), device("n1", Kind.RNIC, parent="d0")]
    )
    lease = grant(state, claim("a", Kind.RNIC, where='name == "n0"'))
    for busy in ("d0", "n0"):
        with pytest.raises(DeviceBusy, match="lease a"):
            run(state, c.RepairDevice(device=busy, how="reset"))
    run(state, c.RepairDevice(device="n1", how="reset"))
    give_back(state, lease)
    run(state, c.RepairDevice(device="d0", how="reset"))
    with pytest.raises(DeviceNotFound):
        run(state, c.RepairDevice(device="nobody", how="reset"))


@pytest.mark.parametrize(
    ("action", "kind", "mended"),
    [
        (Action.REBOOT, Kind.GPU, True),
        (Action.RESET, Kind.GPU, True),
        (Action.POWER_CYCLE, Kind.GPU, False),
        (Action.REPLACE, Kind.GPU, False),
        (Action.NONE, Kind.GPU, False),
        (Action.RESET, Kind.DPU, False),
    ],
)
def test_a_reboot_mends_what_asks_for_no_more_and_the_next_look_says_whether_it_did(action, kind, mended):
    sick = device("g0", kind, conditions=(latched(action=action),))
    state = state_of([sick])
    run(state, c.Begin(boot_id="boot-2"))
    assert state.devices["g0"].conditions, "until somebody has looked"
    seen(state, sick)
    assert state.devices["g0"].conditions == sick.conditions
    run(state, c.Begin(boot_id="boot-3"))
    seen(state, device("g0", kind))
    assert (not state.devices["g0"].conditions) is mended


# --- with a driver


class Resetting(FakeDriver):
    """Sickness is latched; a reset takes it away unless it is ``hopeless``."""

    def __init__(self, devices, folder):
        super().__init__(devices, folder)
        self.resets: list[str] = []
        self.hopeless: set[str] = set()

    def sample(self, device_ids, deadline):
        found = super().sample(device_ids, deadline)
        return [msgspec.structs.replace(one, latched=True, action=Action.RESET) for one in found]

    def reset(self, device_id, *, deadline=None):
        self.resets.append(device_id)
        self.clinging.discard(device_id)
        if device_id not in self.hopeless:
            self.sick.discard(device_id)
        return Operation.completed(None, device_id, "reset")


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path, server("n0", 1))
    world.driver = Resetting(list(world.driver.devices.values()), world.driver.folder)
    world.start()
    return world


GPU = "n0/gpu0"


def test_a_reset_that_worked_lets_the_device_be_claimed_again(world):
    world.driver.sick.add(GPU)
    with pytest.raises(ClaimRefused, match="hal repair"):
        world.broker.claim("gpu")
    world.driver.sick.clear()
    world.broker.refresh()
    with pytest.raises(ClaimRefused, match="latched"):
        world.start().claim("gpu")
    done = world.broker.repair("gpu0")
    assert (done.device, done.steps, done.unfit) == (GPU, ("reset by fake",), None)
    assert [gone.type for gone in done.cleared] == ["Broken"]
    assert world.start().claim("gpu").devices[0].id == GPU
    assert "repaired" in [event.type.value for event in world.broker.events()]


def test_a_reset_that_did_not_help_clears_nothing(world):
    world.driver.sick.add(GPU)
    world.driver.hopeless.add(GPU)
    with pytest.raises(HardwareFault, match="still unwell"):
        world.broker.repair("gpu0")
    with pytest.raises(ClaimRefused):
        world.broker.claim("gpu")


def test_a_held_device_is_not_reset(world):
    world.broker.claim("gpu", id="a")
    with pytest.raises(DeviceBusy, match="lease a"):
        world.broker.repair("gpu0")
    assert world.driver.resets == []


def test_an_operators_word_is_recorded_and_resets_nothing(world):
    world.driver.sick.add(GPU)
    world.broker.refresh()
    with pytest.raises(HardwareFault):
        world.broker.repair("gpu0", by_operator="replaced the riser")
    world.driver.sick.clear()
    with pytest.raises(UsageError):
        world.broker.repair("gpu0", by_operator=" ")
    world.broker.repair("gpu0", by_operator="replaced the riser")
    assert world.driver.resets == []
    assert any("replaced the riser" in event.detail for event in world.broker.events())
    world.broker.claim("gpu")


def test_a_driver_that_cannot_reset_needs_a_word(tmp_path):
    world = World(tmp_path, server("n0", 1))
    with pytest.raises(Unsupported, match="--by-operator"):
        world.broker.repair("gpu0")
    with pytest.raises(Unsupported):
        world.broker.repair("gpu0", scrub=True, by_operator="x")


def test_a_driver_that_fails_to_reset_clears_nothing(world):
    def fail(device_id, *, deadline=None):
        raise DeviceGone("off the bus", device=device_id)

    world.driver.sick.add(GPU)
    world.broker.refresh()
    world.driver.sick.clear()
    world.driver.reset = fail
    with pytest.raises(DeviceGone):
        world.broker.repair("gpu0")
    with pytest.raises(ClaimRefused, match="latched"):
        world.broker.claim("gpu")


def test_a_reset_is_proof_that_a_fenced_device_let_go(world):
    held = world.broker.claim("gpu")
    world.driver.clinging.add(GPU)
    held.release()
    assert world.broker.status().fenced
    world.broker.repair("gpu0")
    assert not world.broker.status().fenced
    world.broker.claim("gpu")


def test_an_operator_may_order_a_fenced_device_free(world):
    held = world.broker.claim("gpu")
    world.driver.clinging.add(GPU)
    held.release()
    world.broker.repair("gpu0", by_operator="power-cycled the node")
    assert not world.broker.status().fenced
    assert any("order of an operator: power-cycled" in event.detail for event in world.broker.events())


def test_a_device_that_is_gone_for_good_is_forgotten_on_an_operators_word(world):
    world.driver.sick.add(GPU)
    world.broker.refresh()
    del world.driver.devices[GPU]
    world.driver.sick.clear()
    world.broker.refresh()
    assert GPU in world.broker.state.devices
    world.broker.repair(GPU, by_operator="sent back")
    assert GPU not in world.broker.state.devices


def test_a_repaired_device_that_is_still_kept_back_says_why(world):
    parent = device("board", Kind.MEMORY, allocatable=False, conditions=(condition("board"),))
    world.others.append(parent)
    world.driver.devices[GPU] = changed(world.driver.devices[GPU], parent="board")
    world.broker.refresh()
    assert "parent" in world.broker.repair("gpu0").unfit
    assert ids(world.broker.claim("rnic").lease)
