"""The crash model: its images are those that write-back at any moment leaves, and it finds what people get wrong."""

from __future__ import annotations

import itertools
import random
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.errors import InvalidArgument, OutOfMemory
from hal.interfaces.pmem import Mapping, PersistenceDomain
from hal_mocks.crash import CrashInconsistency, CrashMemory, explore
from hal_mocks.crash.stores import every_outcome, some_outcomes
from hal_mocks.examples.append_log import HEADER_BYTES, AppendLog

WORDS = 4  # of 8 bytes: two lines of two words each
LINE = 16

Op = tuple[str, int, int]
ops = st.lists(
    st.one_of(
        st.tuples(st.just("store"), st.integers(0, WORDS - 1), st.integers(1, 3)),
        st.tuples(st.just("flush"), st.integers(0, WORDS - 1), st.just(0)),
        st.tuples(st.just("drain"), st.just(0), st.just(0)),
    ),
    max_size=9,
)


def reachable(program: list[Op]) -> set[tuple[int, ...]]:
    """An oracle that shares nothing with the model: let every line be written back, or not, after every step.

    A state is what is durable of each line; a flush remembers what its lines hold, and a drain throws away the states
    in which a line is older than what it was when it was flushed.
    """
    per_line = WORDS * 8 // LINE
    seen = [0] * WORDS
    history: list[list[tuple[int, ...]]] = [[tuple(seen[:2])], [tuple(seen[2:])]]  # contents of a line since the start
    floor = [0, 0]  # the oldest content of a line that may still be durable
    marks: list[int | None] = [None, None]
    for verb, word, value in program:
        line = word // per_line
        if verb == "store":
            seen[word] = value
            history[line].append(tuple(seen[line * 2 : line * 2 + 2]))
        elif verb == "flush":
            marks[line] = len(history[line]) - 1
        else:
            for each in (0, 1):
                mark = marks[each]
                if mark is not None:
                    floor[each] = max(floor[each], mark)
                marks[each] = None
    return {a + b for a, b in itertools.product(history[0][floor[0] :], history[1][floor[1] :])}


def run(memory: CrashMemory, program: list[Op]) -> None:
    for verb, word, value in program:
        if verb == "store":
            memory.buffer.cast("Q")[word] = value
        elif verb == "flush":
            memory.flush(word * 8, 8)
        else:
            memory.drain()


def words(image: bytes) -> tuple[int, ...]:
    return tuple(np.frombuffer(image, "u8").tolist())


@given(program=ops)
@settings(max_examples=400)
def test_the_images_are_those_that_write_back_at_any_moment_leaves(program: list[Op]) -> None:
    memory = CrashMemory(WORDS * 8, line_bytes=LINE)
    run(memory, program)
    assert {words(memory.image(kept)) for kept in every_outcome(memory.lines)} == reachable(program)


@given(program=ops, seed=st.integers(0, 1000))
def test_a_sample_is_one_of_the_images(program: list[Op], seed: int) -> None:
    memory = CrashMemory(WORDS * 8, line_bytes=LINE)
    run(memory, program)
    every = reachable(program)
    for kept in some_outcomes(memory.lines, 20, random.Random(seed)):
        assert words(memory.image(kept)) in every


@given(program=ops)
def test_the_count_of_outcomes_is_true(program: list[Op]) -> None:
    memory = CrashMemory(WORDS * 8, line_bytes=LINE)
    run(memory, program)
    assert memory.lines.outcomes() == len(list(every_outcome(memory.lines)))


def test_an_unaligned_store_is_torn_at_words_and_nowhere_else() -> None:
    memory = CrashMemory(64)
    memory.store(4, b"\xff" * 8)
    images = {memory.image(kept)[:16].hex() for kept in every_outcome(memory.lines)}
    assert images == {"00" * 16, "00" * 4 + "ff" * 4 + "00" * 8, "00" * 4 + "ff" * 8 + "00" * 4}


def test_a_drain_waits_for_the_flushes_of_its_own_thread_only() -> None:
    memory = CrashMemory(64)
    memory.store(0, b"\x01" * 8)
    other = threading.Thread(target=memory.flush, args=(0, 8))
    other.start()
    other.join()
    memory.drain()
    assert memory.lines.outcomes() == 2
    memory.persist(0, 8)
    assert memory.lines.outcomes() == 1
    assert memory.durable[:8] == b"\x01" * 8


def test_stores_through_an_array_may_come_in_any_order_within_a_line() -> None:
    memory = CrashMemory(64)
    memory.array("u8")[:2] = (1, 2)
    memory.flush(0, 64)
    assert {words(memory.image(kept))[:2] for kept in every_outcome(memory.lines)} == {(0, 0), (1, 0), (0, 2), (1, 2)}
    memory.drain()
    assert words(bytes(memory.durable))[:2] == (1, 2)


def test_caches_that_survive_make_every_visible_store_durable_in_order() -> None:
    left: set[tuple[int, ...]] = set()

    def program(memory: CrashMemory) -> None:
        memory.buffer.cast("Q")[0] = 1
        memory.buffer.cast("Q")[1] = 2

    def check(memory: CrashMemory, promises: object) -> None:
        left.add(words(memory.read(0, 16)))

    explore(program, check, size_bytes=64, domain=PersistenceDomain.CPU_CACHE)
    assert left == {(1, 0), (1, 2)}


def test_volatile_memory_keeps_nothing() -> None:
    def check(memory: CrashMemory, promises: object) -> None:
        assert not any(memory.read(0, 64))

    report = explore(
        lambda memory: memory.memcpy_persist(0, b"gone"), check, size_bytes=64, domain=PersistenceDomain.NONE
    )
    assert report.ok


# The append log: right, and wrong in the ways that people get it wrong.

RECORDS = (b"first", b"the second is longer than one line of the cache, so that it spans several" * 2, b"3")


def append_all(log_type: type[AppendLog] = AppendLog):
    def program(memory: CrashMemory) -> None:
        log = log_type.create(memory)
        memory.promise(())
        done: tuple[bytes, ...] = ()
        for record in RECORDS:
            log.append(record)
            done = (*done, record)
            memory.promise(done)

    return program


def recover(memory: CrashMemory, promises: tuple[tuple[bytes, ...], ...]) -> None:
    """What was promised is there, in order, and at most the record under way comes after it."""
    if not promises:
        return  # the log was being made
    found, promised = tuple(AppendLog(memory)), promises[-1]
    assert found[: len(promised)] == promised, f"promised {len(promised)} records, found {len(found)}"
    assert found == RECORDS[: len(found)]
    assert len(found) <= len(promised) + 1


class NoFlush(AppendLog):
    """Forgets to persist a record before its head."""

    def _write_body(self, offset: int, data: bytes) -> None:
        self._memory.buffer[offset : offset + len(data)] = data


class NoDrain(AppendLog):
    """Flushes, but does not wait."""

    def _write_body(self, offset: int, data: bytes) -> None:
        self._memory.buffer[offset : offset + len(data)] = data
        self._memory.flush(offset, len(data))


class NoHead(AppendLog):
    """Returns before the head is durable."""

    def _write_head(self, offset: int, word: bytes) -> None:
        self._memory.buffer[offset : offset + len(word)] = word
        self._memory.flush(offset, len(word))


class HeadFirst(AppendLog):
    """Lets the record count before it is there."""

    def _write_body(self, offset: int, data: bytes) -> None:
        self._body = (offset, data)

    def _write_head(self, offset: int, word: bytes) -> None:
        super()._write_head(offset, word)
        super()._write_body(*self._body)


class ShortFlush(AppendLog):
    """Persists the first line of a record only."""

    def _write_body(self, offset: int, data: bytes) -> None:
        self._memory.buffer[offset : offset + len(data)] = data
        self._memory.persist(offset, min(64, len(data)))


def test_the_append_log_survives_every_power_failure() -> None:
    report = explore(append_all(), recover, size_bytes=1024, limit=1 << 14)
    assert report.ok, report.describe()
    assert report.images > 50
    assert report.raise_for_failure() is report


def test_the_append_log_survives_what_an_earlier_log_left() -> None:
    old = CrashMemory(1024)
    log = AppendLog.create(old)
    for number in range(9):
        log.append(bytes([number + 1]) * 70)
    report = explore(append_all(), recover, image=bytes(old.seen), limit=1 << 14)
    assert report.ok, report.describe()


@pytest.mark.parametrize("wrong", [NoFlush, NoDrain, NoHead, HeadFirst, ShortFlush])
def test_a_wrong_append_log_is_caught(wrong: type[AppendLog]) -> None:
    report = explore(append_all(wrong), recover, size_bytes=1024, limit=1 << 12)
    assert not report.ok
    with pytest.raises(CrashInconsistency):
        report.raise_for_failure()


@pytest.mark.parametrize("wrong", [NoFlush, HeadFirst])
def test_sampling_catches_it_too_and_the_case_is_made_small(wrong: type[AppendLog]) -> None:
    report = explore(append_all(wrong), recover, size_bytes=1024, limit=1, samples=300, seed=7)
    assert not report.complete
    assert report.failure is not None
    whole = explore(append_all(wrong), recover, size_bytes=1024)
    assert whole.failure is not None
    assert len(report.failure.kept) <= len(whole.failure.kept) + 1
    again = explore(append_all(wrong), recover, size_bytes=1024, limit=1, samples=300, seed=7)
    assert again.failure == report.failure


def test_the_smallest_schedule_names_the_lines_of_the_program() -> None:
    report = explore(append_all(NoFlush), recover, size_bytes=1024)
    failure = report.failure
    assert failure is not None
    assert failure.smallest
    assert {store.offset // 64 for store in failure.kept} == {1}, "the line of the head, and no other"
    assert {store.offset // 64 for store in failure.lost} == {2, 3}, "the rest of the record"
    text = report.describe()
    assert "the power fails before a drain" in text
    assert "in append" in text
    assert "torn" in text
    first, last = failure.lost[0].number, failure.lost[-1].number
    assert f"lost  stores {first} to {last}: 120 bytes at 0x80" in text


def test_a_power_failure_during_recovery_is_looked_at_when_asked() -> None:
    """A recovery that counts its runs in two steps, and must not be interrupted between them."""

    def program(memory: CrashMemory) -> None:
        memory.memcpy_persist(0, b"\x01")

    def check(memory: CrashMemory, promises: object) -> None:
        assert memory.read(64, 1) == memory.read(128, 1), "the two counters differ"
        memory.memcpy_persist(64, b"\x01")
        memory.memcpy_persist(128, b"\x01")

    assert explore(program, check, size_bytes=256).ok
    report = explore(program, check, size_bytes=256, crash_in_check=True)
    assert "second power failure" in report.describe()


def test_the_log_refuses_what_does_not_fit_and_loses_nothing() -> None:
    memory = CrashMemory(256)
    log = AppendLog.create(memory)
    log.append(b"kept")
    with pytest.raises(OutOfMemory):
        log.append(b"x" * 200)
    with pytest.raises(InvalidArgument):
        log.append(b"")
    assert list(AppendLog(memory)) == [b"kept"]
    with pytest.raises(InvalidArgument, match="no append log"):
        AppendLog(CrashMemory(256))


@given(records=st.lists(st.binary(min_size=1, max_size=90), max_size=6))
@settings(max_examples=50)
def test_what_was_appended_is_read_again(records: list[bytes]) -> None:
    memory = CrashMemory(HEADER_BYTES + 1024)
    log = AppendLog.create(memory)
    for record in records:
        log.append(record)
    assert list(AppendLog(memory)) == records


def test_the_memory_is_a_mapping_with_the_errors_of_one() -> None:
    memory = CrashMemory(64)
    assert isinstance(memory, Mapping)
    for verb in (lambda: memory.store(60, b"12345"), lambda: memory.read(-1, 2), lambda: memory.flush(0, 65)):
        with pytest.raises(InvalidArgument):
            verb()
    with pytest.raises(IndexError):
        memory.buffer[64]
    with pytest.raises(ValueError, match="do not fit"):
        memory.buffer[0:4] = b"12345"
    with pytest.raises(InvalidArgument):
        CrashMemory()
    memory.close()
    memory.close()
    with pytest.raises(InvalidArgument, match="closed"):
        memory.read(0, 1)
