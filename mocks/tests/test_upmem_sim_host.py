"""The host's library: what it refuses, how ranks are owned, what runs asynchronously, and a mock machine's ranks."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hal_mocks.faults import FaultType
from hal_mocks.machine import Machine
from hal_mocks.upmem_sim import stage
from mocks.tests import dpus as host
from mocks.tests.dpus import HEAP, Dpus, Error, allocated, compiled, library
from mocks.tests.ranks import graph

COUNT = """
#include <stdint.h>
#include <mram.h>
__host uint32_t word; __host uint64_t wide; __mram_noinit_keep uint8_t area[64];
volatile uint32_t sink;
int main(void) { for (uint32_t i = 0; i < word; i++) sink = i; wide++; return 0; }
"""
SPIN = """
#include <defs.h>
#include <stdint.h>
__host volatile uint32_t go, done;
int main(void) { while (!go) {} done = 7; return 0; }
"""


@pytest.fixture
def one() -> Iterator[Dpus]:
    with allocated(2) as dpus:
        dpus.load(compiled(COUNT))
        yield dpus


def raises(code: int, words: str) -> pytest.RaisesExc[Error]:
    return pytest.raises(Error, match=words, check=lambda error: error.code == code)


@pytest.mark.parametrize(
    ("symbol", "offset", "length", "code", "words"),
    [
        ("word", 2, 2, host.WRAM, "multiples of 4"),
        ("area", 4, 8, host.MRAM, "multiples of 8"),
        ("area", 0, 4, host.MRAM, "multiples of 8"),
        ("word", 0, 8, host.SYMBOL_RANGE, "the symbol has 4"),
        ("area", 64, 8, host.SYMBOL_RANGE, "the symbol has 64"),
        (HEAP, (64 << 20) - 64, 8, host.MRAM, "beyond the end of MRAM at 0x0c000000"),
        ("words", 0, 4, host.NO_SYMBOL, "undefined symbol: .* has no words"),
        ("main", 0, 8, 9, "IRAM cannot be copied"),
    ],
)
def test_a_copy_is_refused_before_a_byte_moves(
    one: Dpus, symbol: str, offset: int, length: int, code: int, words: str
) -> None:
    with raises(code, words):
        one.broadcast(symbol, bytes(length), offset)


def test_one_buffer_does_not_take_the_bytes_of_several_dpus(one: Dpus) -> None:
    size, buffer = ctypes.c_size_t(4), ctypes.create_string_buffer(4)
    with raises(host.DPU_SET, "one buffer takes the bytes of one DPU"):
        host.check(library().dpu_copy_from(one.set, b"word", 0, buffer, size))


def test_a_buffer_is_prepared_once_and_forgotten_when_pushed(one: Dpus) -> None:
    buffer = ctypes.create_string_buffer(4)
    host.check(library().dpu_prepare_xfer(one.dpus[0], buffer))
    with raises(host.ALREADY_SET, "has a buffer already"):
        host.check(library().dpu_prepare_xfer(one.set, buffer))
    host.check(library().dpu_push_xfer(one.set, host.TO_DPU, b"word", 0, ctypes.c_size_t(4), 0))
    one.push("word", [b"abcd", b"efgh"])
    assert one.pull("word", 4) == [b"abcd", b"efgh"]


def test_programs_that_are_none_are_refused(tmp_path: Path) -> None:
    foreign = Path(sys.executable).resolve()
    text = tmp_path / "text"
    text.write_text("not a program")
    short = tmp_path / "short"
    short.write_bytes(compiled(COUNT).read_bytes()[:-500])
    with allocated() as dpus:
        with raises(host.NO_FILE, "No such file"):
            dpus.load(tmp_path / "nothing")
        with raises(host.BAD_FILE, "is not an ELF file"):
            dpus.load(text)
        for path in (foreign, short):
            with raises(host.BAD_FILE, "was not made by hal-dpucc"):
                dpus.load(path)
        with raises(host.NO_PROGRAM, "no program has been loaded"):
            dpus.launch()


def test_a_program_file_that_was_damaged_anywhere_is_refused_or_loads_but_never_crashes(tmp_path: Path) -> None:
    whole = compiled(COUNT).read_bytes()
    damaged = tmp_path / "damaged"
    with allocated() as dpus:
        for place in range(0, len(whole), 97):
            damaged.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
            try:
                dpus.load(damaged)
            except Error as error:
                assert error.code  # noqa: PT017  either is right


@pytest.mark.parametrize("profile", ["backend=fpga", "colour=red", "backend", "schedule=soon"])
def test_a_profile_that_makes_no_sense_is_refused(profile: str) -> None:
    with raises(host.PROFILE, "invalid profile"):
        Dpus(1, profile)


def test_a_set_has_exactly_as_many_dpus_as_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_UPMEM_RANKS", "3")
    with allocated(70, "backend=simulator,nrThreadsPerRank=0") as dpus:
        count = ctypes.c_uint32()
        host.check(library().dpu_get_nr_ranks(dpus.set, ctypes.byref(count)))
        assert (count.value, len(dpus.dpus)) == (2, 70)
        with allocated(host.ALL) as rest:
            assert len(rest.dpus) == 64
        with raises(host.ALLOCATION, "64 DPUs in 1 free ranks of 3, dpu_rank0 has an owner, dpu_rank1 has an owner"):
            Dpus(65)
    with allocated(1, "rankPath=/dev/dpu_rank2") as dpus:
        rank = library().dpu_get_rank(ctypes.c_void_p(dpus.dpus[0].first))
        assert library().dpu_sim_rank_name(ctypes.c_void_p(rank)) == b"dpu_rank2"


def test_a_rank_is_one_process_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HAL_UPMEM_LOCKS", str(tmp_path / "locks"))
    code = "import sys; from mocks.tests.dpus import Dpus; Dpus(1); print('has it', flush=True); sys.stdin.read()"
    with subprocess.Popen((sys.executable, "-c", code), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"has it\n"
        with raises(host.ALLOCATION, "dpu_rank0 has an owner"):
            Dpus(1)
        other.kill()
    with allocated() as dpus:
        assert len(dpus.dpus) == 1


def test_mram_is_busy_and_wram_is_not_while_a_rank_runs() -> None:
    with allocated() as dpus:
        dpus.load(compiled(SPIN))
        dpus.launch(host.ASYNCHRONOUS)
        assert dpus.status() == (False, False)
        with raises(host.BUSY, "dpu_rank0 runs, and its MRAM is the DPUs' meanwhile"):
            dpus.push(HEAP, [bytes(8)])
        with raises(host.RUNNING, "has not ended"):
            dpus.launch()
        with raises(host.NOT_PARALLEL, "MRAM is the DPU's alone"):
            dpus.broadcast(HEAP, bytes(8), flags=host.PARALLEL)
        dpus.broadcast("go", b"\1\0\0\0", flags=host.PARALLEL)
        dpus.sync()
        assert dpus.status() == (True, False)
        assert dpus.number(0, "done") == 7


def test_a_set_that_is_freed_while_it_runs_stops() -> None:
    dpus = Dpus(2)
    dpus.load(compiled(SPIN))
    dpus.launch(host.ASYNCHRONOUS)
    dpus.free()
    with allocated(2) as again:
        assert len(again.dpus) == 2


def test_asynchronous_work_is_done_in_order_and_its_errors_come_with_sync() -> None:
    with allocated(2) as dpus:
        dpus.load(compiled(COUNT))
        seen: list[int] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, host.Set, ctypes.c_uint32, ctypes.c_void_p)

        def see(_set: host.Set, index: int, _arguments: object) -> int:
            seen.append(index)
            return host.OK

        note = kind(see)
        fails = kind(lambda _set, _index, _arguments: 3)
        for _ in range(3):
            dpus.launch(host.ASYNCHRONOUS)
        host.check(library().dpu_callback(dpus.set, note, None, 1))
        dpus.sync()
        assert seen == [0]
        assert dpus.number(1, "wide", 8) == 3
        host.check(library().dpu_callback(dpus.set, fails, None, 1))
        with raises(host.DRIVER, "a callback of dpu_rank0 said so"):
            dpus.sync()
        dpus.sync()


def test_programs_see_a_mock_machine_s_ranks_with_their_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(graph(per_ci=2, disabled=(3,)), tmp_path / "state")
    name = machine.graph.hosts[0].name
    for key, value in stage(machine, name).items():
        monkeypatch.setenv(key, value)
    lost = machine.inject("dpu_rank1", FaultType.LOST)
    with raises(host.ALLOCATION, "dpu_rank1 does not answer"):
        Dpus(2, ranks=True)
    machine.heal(id=lost.id)
    with allocated(2, ranks=True) as dpus:
        assert len(dpus.dpus) == 2 * 15
        dpus.load(compiled(COUNT))
        machine.inject("dpu_rank0", FaultType.RUN_FAULT, dpu=4, tasklet=0)
        with raises(host.FAULT, "dpu 4 of dpu_rank0: tasklet 0: the DPU faults"):
            dpus.launch()
        machine.heal("dpu_rank0")
        machine.inject("dpu_rank0", FaultType.ECC_UNCORRECTABLE, dpu=5)
        dpus.load(compiled(COUNT))
        with raises(host.CORRUPTED, "MRAM of dpu 5 of dpu_rank0 lost data"):
            dpus.pull(HEAP, 8)
        machine.heal("dpu_rank0")
        dpus.launch()
        machine.inject("dpu_rank1", FaultType.LOST)
        with raises(host.DRIVER, "dpu_rank1 does not answer"):
            dpus.launch()


def test_a_rank_that_hangs_goes_on_when_it_is_healed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(graph(), tmp_path / "state")
    for key, value in stage(machine, machine.graph.hosts[0].name).items():
        monkeypatch.setenv(key, value)
    with allocated(1) as dpus:
        dpus.load(compiled(COUNT))
        fault = machine.inject("dpu_rank0", FaultType.HANG)
        dpus.launch(host.ASYNCHRONOUS)
        assert dpus.status() == (False, False)
        machine.heal(id=fault.id)
        dpus.sync()
        assert dpus.number(0, "wide", 8) == 1


def test_transfers_are_counted_by_a_table_of_bandwidths(one: Dpus) -> None:
    before = one.counters().to_dpu_seconds
    one.push(HEAP, [bytes(1 << 20)] * 2)
    # Two of 64 DPUs have a share of 6.68 GB/s that is less than the 0.33 GB/s of one alone.
    assert one.counters().to_dpu_seconds - before == pytest.approx(2 * (1 << 20) / 0.33e9)
