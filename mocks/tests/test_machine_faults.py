from __future__ import annotations

import multiprocessing
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import DeviceNotFound, ProfileError, UsageError
from hal.model.kind import Kind
from hal_mocks.clock import SharedClock, VirtualClock
from hal_mocks.fault_rules import KINDS, random_faults
from hal_mocks.faults import FLAP_SECONDS, Fault, FaultType
from hal_mocks.machine import Machine, open_machine
from hal_mocks.names import devices_of
from hal_mocks.profile import load_profile

DGX = load_profile("dgx-h100")


@pytest.fixture
def machine(tmp_path):
    return Machine(DGX, tmp_path, VirtualClock())


def types_on(machine: Machine, name: str) -> list[FaultType]:
    return [fault.type for fault in machine.faults_of(machine.resolve(name))]


def test_a_fault_holds_from_its_onset_for_its_duration_and_heals_by_itself(machine):
    machine.inject("gpu0", FaultType.LOST, after_seconds=10, duration_seconds=5)
    seen = []
    for _ in range(4):
        seen.append(types_on(machine, "gpu0"))
        machine.clock.advance(5)
    assert seen == [[], [], [FaultType.LOST], []]
    assert types_on(machine, "gpu1") == []


def test_a_fault_without_duration_stays_until_it_is_healed(machine):
    fault = machine.inject("gpu0", FaultType.XID, code=79)
    machine.inject("gpu0", FaultType.SLOW, seconds=0.5)
    machine.clock.advance(1e6)
    assert types_on(machine, "gpu0") == [FaultType.XID, FaultType.SLOW]
    assert machine.heal(id=fault.id) == 1
    assert types_on(machine, "gpu0") == [FaultType.SLOW]
    assert machine.heal("gpu1") == 0
    assert machine.heal() == 1
    assert types_on(machine, "gpu0") == []


def test_fault_ids_are_never_given_twice(machine):
    first = machine.inject("gpu0", FaultType.LOST)
    machine.heal()
    machine.forget()
    assert machine.inject("gpu0", FaultType.LOST).id > first.id


def test_a_flapping_link_is_down_in_the_first_half_of_each_period():
    fault = Fault(id=1, device="x", type=FaultType.FLAP, onset_at=100.0, seconds=4.0, duration_seconds=9.0)
    down = [fault.holds_down(at) for at in (99, 100, 101.9, 102, 103.9, 104, 106, 108, 108.9, 109)]
    assert down == [False, True, True, False, False, True, False, True, True, False]


def test_a_flapping_link_without_a_period_has_the_usual_one():
    fault = Fault(id=1, device="x", type=FaultType.FLAP)
    assert fault.holds_down(FLAP_SECONDS * 10.25)
    assert not fault.holds_down(FLAP_SECONDS * 10.75)


seconds = st.integers(0, 10**9).map(lambda milliseconds: milliseconds / 1000)  # as fine as a clock is


@given(
    st.sampled_from(FaultType),
    seconds,
    st.none() | st.floats(0.01, 1e5),
    st.floats(0, 1e3),
    seconds,
    st.integers(0, 999).map(lambda part: part / 1000),
)
def test_nothing_changes_before_the_next_change(type, onset, duration, period, now, part):
    fault = Fault(id=1, device="x", type=type, onset_at=onset, duration_seconds=duration, seconds=period)
    change = fault.next_change(now)
    if change is not None:
        assert change > now
    until = now + 1e6 if change is None else change
    between = now + (until - now) * part
    assert fault.active(between) == fault.active(now)
    if period == 0 or period > 1e-3:  # below that, floating point has no room for the turns
        assert fault.holds_down(between) == fault.holds_down(now)


@pytest.mark.parametrize(
    "name",
    ["gpu3", "pci:0000:5c:00.0", "dgx-h100/gpu3", "dgx-h100/pci:0000:5c:00.0", DGX.hosts[0].gpus[3].uuid],
)
def test_a_device_answers_to_id_name_and_alias(machine, name):
    assert machine.resolve(name) == DGX.hosts[0].gpus[3].uuid


def test_partitions_that_come_and_go_pass_by_their_id(machine):
    assert machine.resolve("MIG-1234") == "MIG-1234"
    assert machine.inject("MIG-1234", FaultType.XID, code=13).device == "MIG-1234"


def test_an_unknown_device_is_refused_with_the_nearest_name(machine):
    with pytest.raises(DeviceNotFound) as caught:
        machine.inject("gpu88", FaultType.LOST)
    assert caught.value.hint is not None
    assert "gpu" in caught.value.hint
    assert machine.state.faults() == ()


def test_in_a_rack_a_name_that_many_have_needs_its_host(tmp_path):
    rack = Machine(load_profile("rack"), tmp_path, VirtualClock())
    with pytest.raises(UsageError, match="3 devices"):
        rack.resolve("gpu0")
    assert rack.resolve("rack-1-n2/gpu0") == rack.graph.hosts[1].gpus[0].uuid
    assert rack.resolve("dpu_rank7") == f"upmem-{rack.graph.hosts[4].upmem_dimms[3].serial}-1"


@pytest.mark.parametrize(
    ("device", "type", "details", "message"),
    [
        ("mlx5_0", FaultType.XID, {"code": 79}, "does not happen to a rnic"),
        ("gpu0", FaultType.BAD_BLOCK, {}, "does not happen to a gpu"),
        ("gpu0", FaultType.XID, {}, "has a number"),
        ("gpu0", FaultType.SLOW, {"seconds": -1.0}, "not negative"),
        ("gpu0", FaultType.SLOW, {"second": 1.0}, "no 'second'"),
        ("gpu0", FaultType.SLOW, {"seconds": "soon"}, "float"),
        ("gpu0", FaultType.LOST, {"duration_seconds": -1.0}, "duration_seconds"),
        ("gpu0", FaultType.LOST, {"after_seconds": float("nan")}, "after_seconds"),
    ],
)
def test_a_fault_that_cannot_be_is_refused_and_nothing_is_set(machine, device, type, details, message):
    with pytest.raises(UsageError, match=message) as caught:
        machine.inject(device, type, **details)
    assert caught.value.hint or "negative" in message
    assert machine.state.faults() == ()


def test_every_type_of_fault_says_to_whom_it_can_happen():
    assert set(KINDS) == set(FaultType)


def test_a_seed_gives_the_same_faults_and_another_seed_others():
    first, again = (random_faults(DGX, seed=3, rate_per_hour=2.0) for _ in range(2))
    assert first == again
    assert first != random_faults(DGX, seed=4, rate_per_hour=2.0)
    assert list(first) == sorted(first, key=lambda fault: fault.onset_at)


def test_random_faults_fit_their_devices_and_come_at_their_rate():
    kinds = {device.id: device.kind for host in DGX.hosts for device in devices_of(host)}
    faults = random_faults(DGX, seed=1, rate_per_hour=1.0, hours=100.0)
    assert all(kinds[fault.device] in KINDS[fault.type] for fault in faults)
    expected = len(kinds) * 100
    assert abs(len(faults) - expected) < 5 * expected**0.5
    assert random_faults(DGX, seed=1, rate_per_hour=0.0) == ()
    only = random_faults(DGX, seed=1, rate_per_hour=5.0, types={FaultType.XID})
    assert {kinds[fault.device] for fault in only} == {Kind.GPU}


def test_a_schedule_counts_from_when_it_is_set(machine):
    planned = random_faults(DGX, seed=5, rate_per_hour=1.0)
    begun = machine.clock.now()
    faults = machine.schedule(planned)
    assert [fault.onset_at for fault in faults] == [begun + fault.onset_at for fault in planned]
    assert len({fault.id for fault in faults}) == len(planned)
    machine.clock.advance(planned[0].onset_at + 0.001)
    assert machine.faults_of(planned[0].device)


def test_an_undisturbed_machine_answers_without_reading_its_fault_list(machine, monkeypatch):
    assert machine.faults_of("gpu0") == ()
    monkeypatch.setattr(machine.state, "faults", None)
    assert machine.faults_of("gpu0") == ()


def _inject(environ: dict[str, str]) -> None:
    machine = open_machine(environ)
    assert machine is not None
    machine.inject("gpu2", FaultType.LOST, after_seconds=30)
    machine.clock.sleep(60)


def test_another_process_moves_shared_time_and_its_faults_are_seen_here(tmp_path):
    environ = {"HAL_MACHINE": f"dgx-h100?state={tmp_path}&clock=virtual"}
    machine = open_machine(environ)
    assert machine is not None
    assert isinstance(machine.clock, SharedClock)
    begun = machine.clock.now()
    assert types_on(machine, "gpu2") == []
    process = multiprocessing.get_context("spawn").Process(target=_inject, args=(environ,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert machine.clock.now() == begun + 60
    assert types_on(machine, "gpu2") == [FaultType.LOST]


def test_shared_time_stands_still_by_itself_and_never_goes_back(tmp_path):
    environ = {"HAL_MACHINE": f"dgx-h100?state={tmp_path}&clock=virtual"}
    one, two = open_machine(environ), open_machine(environ)
    assert one is not None
    assert two is not None
    now = one.clock.now()
    one.clock.sleep(-5)
    assert two.clock.now() == now
    two.clock.sleep(0.25)
    assert one.clock.now() == now + 0.25


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dgx-h100?colour=red", "unknown option 'colour'"),
        ("dgx-h100?seed=many", "no whole number"),
        ("dgx-h100?clock=sun", "unknown clock"),
        ("dgx-h200", "no profile is called"),
    ],
)
def test_a_machine_that_cannot_be_is_refused_with_a_way_out(text, message, tmp_path):
    with pytest.raises(ProfileError, match=message) as caught:
        open_machine({"HAL_MACHINE": text, "XDG_RUNTIME_DIR": str(tmp_path)})
    assert caught.value.hint


def test_without_a_name_there_is_no_machine():
    assert open_machine({}) is None


def test_the_graph_is_kept_and_read_again_only_when_something_changed(tmp_path, monkeypatch):
    environ = {"HAL_MACHINE": f"dgx-h100?state={tmp_path}&seed=2"}
    first = open_machine(environ)
    assert first is not None
    monkeypatch.setattr("hal_mocks.profile.load_profile", None)
    monkeypatch.setattr("hal_mocks.graph_cache._seen", {})
    again = open_machine(environ)
    assert again is not None
    assert again.graph == first.graph == load_profile("dgx-h100", seed=2)
    monkeypatch.undo()
    os.truncate(tmp_path / "graph.cache", os.path.getsize(tmp_path / "graph.cache") // 2)
    monkeypatch.setattr("hal_mocks.graph_cache._seen", {})
    mended = open_machine(environ)
    assert mended is not None
    assert mended.graph == first.graph


def test_forgetting_leaves_a_machine_as_new_and_foreign_files_alone(machine):
    machine.inject("gpu0", FaultType.LOST)
    (machine.state.device("gpu0") / "something").write_text("kept")
    mine = machine.state.folder / "mine.txt"
    mine.write_text("mine")
    machine.forget()
    assert machine.faults_of(machine.resolve("gpu0")) == ()
    assert not (machine.state.folder / "devices").exists()
    assert mine.read_text() == "mine"
