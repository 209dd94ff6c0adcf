"""What every driver of UPMEM ranks must do.

The kit brings no program, since what a program is differs from driver to driver. Give the fixture ``program``: one
named ``double`` with three symbols: ``input`` and ``output``, 64 KiB each in MRAM, and ``count``, 4 bytes in WRAM. Each
unit writes twice each of the first ``count`` 32-bit elements of ``input`` to ``output``, and its tasklets print
something. With the SDK that is a C file of twenty lines.
"""

from __future__ import annotations

import struct
from typing import Any

import pytest

from hal.drivers.contract import Driver, Grant
from hal.drivers.guard import GuardPages
from hal.errors import DeviceBusy, HalError, InvalidArgument, LeaseEnded, ProgramFault
from hal.interfaces.common import Handle
from hal.interfaces.deadline import Deadline
from hal.interfaces.upmem import MRAM_HEAP, Direction, MemoryKind, RunState, Upmem
from hal.model.device import Device
from hal.model.kind import Kind
from hal.testing.conformance import DriverConformance, assert_error_is_for_people, needs

SYMBOL_BYTES = 64 << 10


class UpmemConformance(DriverConformance):
    """The checks for UPMEM ranks. ``lacks`` may name ``fault`` (no program that faults can be given), ``log``,
    ``ownership`` (the driver cannot tell that a rank is taken), ``reset`` and ``scrub``.
    """

    interface = Upmem

    @pytest.fixture
    def program(self) -> Any:
        """Override: the program that doubles."""
        raise AssertionError(f"{type(self).__name__} must give a fixture 'program'; the module's text says which")

    @pytest.fixture
    def faulty_program(self) -> Any:
        """Override, or declare to lack ``fault``: a program in which tasklet 0 of every unit faults."""
        raise AssertionError("give a fixture 'faulty_program', or declare lacks = {'fault'}")

    @pytest.fixture
    def upmem(self, handle: Handle) -> Upmem:
        """The opened rank, nothing loaded."""
        assert isinstance(handle, Upmem), f"{type(handle).__name__} does not offer all of hal.interfaces.upmem.Upmem"
        return handle

    @pytest.fixture
    def loaded(self, upmem: Upmem, program: Any) -> Upmem:
        """The rank with the program that doubles."""
        upmem.load(program)
        return upmem

    def test_the_device_says_what_a_claim_selects_by(self, device: Device) -> None:
        assert device.kind is Kind.UPMEM
        assert device.parent, "a rank shares the fate of its DIMM"
        for name in ("dpus", "mram_bytes", "clock_hz"):
            assert name in device.attributes, f"{device.id} has no attribute {name}, not even an absent one"
        assert device.capacity.get("dpus", 0) > 0

    def test_the_rank_describes_itself(self, upmem: Upmem, device: Device) -> None:
        rank = upmem.rank()
        assert len(rank.dpus) == device.capacity["dpus"]
        assert not set(rank.dpus) & set(rank.disabled), "a unit works or is disabled, not both"
        assert rank.mram_bytes > rank.wram_bytes > 0

    def test_without_a_program_nothing_can_be_reached(self, upmem: Upmem, device: Device) -> None:
        assert upmem.status().state is RunState.EMPTY
        assert upmem.symbols() == {}
        with pytest.raises(InvalidArgument) as caught:
            upmem.copy_to(upmem.rank().dpus[0], "input", 0, bytes(8))
        assert_error_is_for_people(caught.value, device.id)
        with pytest.raises(InvalidArgument):
            upmem.launch().wait(Deadline.after(10))

    def test_loading_shows_the_symbols(self, loaded: Upmem) -> None:
        symbols = loaded.symbols()
        assert symbols["input"].memory is MemoryKind.MRAM
        assert symbols["count"].memory is MemoryKind.WRAM
        assert symbols["input"].size_bytes == SYMBOL_BYTES
        assert MRAM_HEAP in symbols
        assert loaded.status().state is RunState.IDLE

    def test_bytes_come_back_from_the_unit_they_went_to(self, loaded: Upmem) -> None:
        dpus = loaded.rank().dpus
        for dpu in dpus:
            loaded.copy_to(dpu, "input", 8, struct.pack("<Q", dpu))
        for dpu in dpus:
            assert loaded.copy_from(dpu, "input", 8, 8) == struct.pack("<Q", dpu)

    def test_a_broadcast_reaches_every_unit(self, loaded: Upmem) -> None:
        loaded.broadcast("count", 0, struct.pack("<I", 7))
        assert {loaded.copy_from(dpu, "count", 0, 4) for dpu in loaded.rank().dpus} == {struct.pack("<I", 7)}

    def test_a_push_scatters_and_gathers(self, loaded: Upmem) -> None:
        dpus = loaded.rank().dpus
        loaded.push(Direction.TO_DPU, "input", 16, {dpu: bytes([dpu]) * 24 for dpu in dpus})
        gathered = {dpu: bytearray(24) for dpu in dpus}
        loaded.push(Direction.FROM_DPU, "input", 16, gathered)
        assert all(gathered[dpu] == bytes([dpu]) * 24 for dpu in dpus)

    def test_a_copy_from_several_units_is_refused(self, loaded: Upmem, device: Device) -> None:
        several: Any = loaded.rank().dpus[:2]
        with pytest.raises(InvalidArgument) as caught:
            loaded.copy_from(several, "input", 0, 8)
        assert_error_is_for_people(caught.value, device.id)

    def test_a_copy_to_several_units_is_allowed(self, loaded: Upmem) -> None:
        several = loaded.rank().dpus[:2]
        loaded.copy_to(several, "input", 0, b"same!!!!")
        assert {loaded.copy_from(dpu, "input", 0, 8) for dpu in several} == {b"same!!!!"}

    @pytest.mark.parametrize(
        ("symbol", "offset", "length"),
        [
            ("input", 4, 8),
            ("input", 0, 4),
            ("input", 0, 12),
            ("count", 0, 2),
            ("count", 2, 4),
            ("input", SYMBOL_BYTES, 8),
            ("input", -8, 8),
            ("input", 0, SYMBOL_BYTES + 8),
            ("count", 4, 4),
            ("no_such_symbol", 0, 8),
        ],
    )
    def test_alignment_bounds_and_names_are_checked_before_anything_is_copied(
        self, loaded: Upmem, device: Device, symbol: str, offset: int, length: int
    ) -> None:
        first = loaded.rank().dpus[0]
        buffers = {first: bytearray(length)}
        for step in (
            lambda: loaded.copy_to(first, symbol, offset, b"\xff" * length),
            lambda: loaded.copy_from(first, symbol, offset, length),
            lambda: loaded.broadcast(symbol, offset, b"\xff" * length),
            lambda: loaded.push(Direction.TO_DPU, symbol, offset, {first: b"\xff" * length}),
            lambda: loaded.push(Direction.FROM_DPU, symbol, offset, buffers),
        ):
            with pytest.raises(InvalidArgument) as caught:
                step()
            assert_error_is_for_people(caught.value, device.id)
        assert b"\xff" not in loaded.copy_from(first, "count", 0, 4)

    def test_units_that_are_disabled_or_not_there_are_refused(self, loaded: Upmem) -> None:
        rank = loaded.rank()
        for dpu in (-1, max(rank.dpus) + 100, *rank.disabled):
            with pytest.raises(InvalidArgument):
                loaded.copy_to(dpu, "input", 0, bytes(8))
            with pytest.raises(InvalidArgument):
                loaded.copy_from(dpu, "input", 0, 8)
            with pytest.raises(InvalidArgument):
                loaded.push(Direction.TO_DPU, "input", 0, {rank.dpus[0]: b"\xee" * 8, dpu: bytes(8)})
        assert loaded.copy_from(rank.dpus[0], "input", 0, 8) != b"\xee" * 8, "a refused push moves nothing"

    def test_pushed_buffers_must_be_of_one_length(self, loaded: Upmem) -> None:
        first, second = loaded.rank().dpus[:2]
        with pytest.raises(InvalidArgument):
            loaded.push(Direction.TO_DPU, "input", 0, {first: bytes(8), second: bytes(16)})

    def test_a_launch_runs_the_program_on_every_unit(self, loaded: Upmem) -> None:
        count = 1500
        dpus = loaded.rank().dpus
        inputs = {dpu: struct.pack(f"<{count}I", *range(dpu, dpu + count)) for dpu in dpus}
        loaded.push(Direction.TO_DPU, "input", 0, inputs)
        loaded.broadcast("count", 0, struct.pack("<I", count))
        loaded.launch().wait(Deadline.after(60))
        assert loaded.status().state is RunState.DONE
        for dpu in dpus:
            found = struct.unpack(f"<{count}I", loaded.copy_from(dpu, "output", 0, 4 * count))
            assert found == tuple(range(2 * dpu, 2 * (dpu + count), 2))

    def test_a_program_can_be_launched_again(self, loaded: Upmem) -> None:
        dpu = loaded.rank().dpus[0]
        loaded.broadcast("count", 0, struct.pack("<I", 2))
        for value in (5, 6):
            loaded.broadcast("input", 0, struct.pack("<II", value, value + 1))
            loaded.launch().wait(Deadline.after(60))
            assert struct.unpack("<II", loaded.copy_from(dpu, "output", 0, 8)) == (2 * value, 2 * value + 2)

    def test_a_launch_can_be_awaited(self, loaded: Upmem) -> None:
        import asyncio

        async def run() -> None:
            await loaded.launch()

        asyncio.run(run())
        assert loaded.status().state is RunState.DONE

    def test_loading_keeps_mram(self, loaded: Upmem, program: Any) -> None:
        dpu = loaded.rank().dpus[0]
        loaded.copy_to(dpu, "input", 0, b"remember")
        loaded.load(program)
        assert loaded.copy_from(dpu, "input", 0, 8) == b"remember"

    def test_a_rank_dies_with_its_lease(self, loaded: Upmem, device: Device, pages: GuardPages, grant: Grant) -> None:
        dpu = loaded.rank().dpus[0]
        pages.revoke(device.id, grant.fence)
        for step in (lambda: loaded.copy_to(dpu, "input", 0, bytes(8)), loaded.status, lambda: loaded.launch().wait()):
            with pytest.raises(LeaseEnded):
                step()

    @needs("ownership")
    def test_a_rank_has_one_owner(
        self, driver: Driver, device: Device, pages: GuardPages, grant: Grant, upmem: Upmem
    ) -> None:
        guard = pages.guard(device.id, grant.lease, grant.fence)
        with pytest.raises(DeviceBusy) as caught:
            driver.open(device.id, guard, Deadline.after(10))
        assert_error_is_for_people(caught.value, device.id)
        upmem.close()
        driver.open(device.id, guard, Deadline.after(10)).close()

    @needs("scrub")
    def test_the_next_holder_finds_nothing_of_the_last(
        self, driver: Driver, device: Device, pages: GuardPages, grant: Grant, loaded: Upmem, program: Any
    ) -> None:
        from hal.drivers.contract import Scrubs

        dpu = loaded.rank().dpus[0]
        loaded.copy_to(dpu, "input", 0, b"secret!!")
        loaded.close()
        assert isinstance(driver, Scrubs)
        driver.scrub(device.id).wait(Deadline.after(60))
        with driver.open(device.id, pages.guard(device.id, grant.lease, grant.fence), Deadline.after(10)) as again:
            assert isinstance(again, Upmem)
            again.load(program)
            assert again.copy_from(dpu, "input", 0, 8) != b"secret!!"

    @needs("log")
    def test_what_tasklets_print_can_be_read(self, loaded: Upmem) -> None:
        loaded.launch().wait(Deadline.after(60))
        assert loaded.log(loaded.rank().dpus[0])

    @needs("fault")
    def test_a_fault_names_unit_and_tasklet(self, upmem: Upmem, device: Device, faulty_program: Any) -> None:
        upmem.load(faulty_program)
        first = upmem.rank().dpus[0]
        with pytest.raises(ProgramFault) as caught:
            upmem.launch().wait(Deadline.after(60))
        assert_error_is_for_people(caught.value, device.id)
        assert f"dpu {first}" in str(caught.value)
        assert "tasklet 0" in str(caught.value)
        status = upmem.status()
        assert status.state is RunState.FAULT
        assert {fault.dpu for fault in status.faults} == set(upmem.rank().dpus)
        with pytest.raises(HalError):
            upmem.launch().wait(Deadline.after(60))
        upmem.load(faulty_program)
        assert upmem.status().state is RunState.IDLE
