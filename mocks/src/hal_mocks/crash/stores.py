"""Stores that are not durable yet, line by line, and what of them a power failure may keep.

The model is that of x86 with the persistence domain at the memory controller (Intel SDM on CLWB and SFENCE, the SNIA
NVM programming model, and the papers on Yat and PMTest that build on them):

* 8 aligned bytes become durable as a whole; a longer or unaligned store is several;
* a line may be written back at any moment, so of a line's stores, in program order, any *prefix* may be durable;
* lines know nothing of each other;
* a flush asks for a write-back of what the line holds then, and the drain of the same thread waits for it: the prefix
  up to the flush is durable for sure;
* stores that nobody watched (through a NumPy array) are found by comparing; their order within a line is not known, so
  any subset of them may have come first. This refuses programs that count on that order. A value that was overwritten
  before the comparison is not seen: watched stores are exact, these are not.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from hal.interfaces.pmem import ATOMIC_BYTES

LINE_BYTES = 64


class Store(msgspec.Struct, frozen=True):
    """Up to 8 bytes within one aligned word: their number in the order of the program, place, content, who stored."""

    number: int
    offset: int
    data: bytes
    where: str


Batch = tuple[Store, ...]
"""Stores of one line whose order is not known; a store that was watched is a batch of its own."""


def pieces(offset: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    """Cut a store into its atomic units."""
    done = 0
    while done < len(data):
        size = min(ATOMIC_BYTES - (offset + done) % ATOMIC_BYTES, len(data) - done)
        yield offset + done, data[done : done + size]
        done += size


class Lines:
    """The stores that may be lost, by cache line."""

    def __init__(self, line_bytes: int = LINE_BYTES) -> None:
        self.line_bytes = line_bytes
        self.pending: dict[int, list[Batch]] = {}
        self._flushed: dict[int, dict[int, int]] = {}  # thread -> line -> how many of its batches were there

    def add(self, batch: Iterable[Store]) -> None:
        """Remember stores whose order among each other is not known; they may lie on several lines."""
        by_line: dict[int, list[Store]] = {}
        for store in batch:
            by_line.setdefault(store.offset // self.line_bytes, []).append(store)
        for line, stores in by_line.items():
            self.pending.setdefault(line, []).append(tuple(stores))

    def flush(self, thread: int, offset: int, length: int) -> None:
        """Mark what the lines of a range hold now; durable after this thread's next drain."""
        if length <= 0:
            return
        marks = self._flushed.setdefault(thread, {})
        for line in range(offset // self.line_bytes, (offset + length - 1) // self.line_bytes + 1):
            if line in self.pending:
                marks[line] = len(self.pending[line])

    def drain(self, thread: int) -> list[Store]:
        """Return what has become durable for sure, in the order of the program, and forget it here."""
        settled: list[Store] = []
        for line, count in self._flushed.pop(thread, {}).items():
            batches = self.pending.get(line, [])
            settled += itertools.chain.from_iterable(batches[:count])
            rest = batches[count:]
            if rest:
                self.pending[line] = rest
            else:
                self.pending.pop(line, None)
            for marks in self._flushed.values():  # other threads' flushes of the line now cover that much less
                if line in marks:
                    marks[line] -= count
                    if marks[line] <= 0:
                        del marks[line]
        return sorted(settled, key=lambda store: store.number)

    def forget(self) -> list[Store]:
        """Return all stores as durable: the platform keeps its caches through a power failure."""
        every = sorted(itertools.chain.from_iterable(itertools.chain(*self.pending.values())), key=lambda s: s.number)
        self.pending.clear()
        self._flushed.clear()
        return every

    def outcomes(self) -> int:
        """How many sets of stores a power failure may keep."""
        count = 1
        for batches in self.pending.values():
            count *= 1 + sum((1 << len(batch)) - 1 for batch in batches)
        return count


def survivors_of(batches: Sequence[Batch]) -> Iterator[tuple[Store, ...]]:
    """Yield what may be kept of one line, fewest first."""
    kept: tuple[Store, ...] = ()
    yield kept
    for batch in batches:
        for size in range(1, len(batch) + 1):
            for chosen in itertools.combinations(batch, size):
                yield (*kept, *chosen)
        kept = (*kept, *batch)


def every_outcome(lines: Lines) -> Iterator[tuple[Store, ...]]:
    """Yield every set of stores that may be kept, fewest first, so that the first that fails is the smallest."""
    options = [list(survivors_of(batches)) for _, batches in sorted(lines.pending.items())]
    ranked = sorted(itertools.product(*(range(len(each)) for each in options)), key=sum)
    for choice in ranked:
        yield tuple(store for each, index in zip(options, choice, strict=True) for store in each[index])


def some_outcomes(lines: Lines, count: int, rng: random.Random) -> Iterator[tuple[Store, ...]]:
    """Yield seeded samples. Each line was never written back, in time, or at some moment between, with equal odds: coin
    tosses for every store would hardly ever show the extremes, which are the likely cases.
    """
    for _ in range(count):
        kept: list[Store] = []
        for _, batches in sorted(lines.pending.items()):
            fate = rng.randrange(3)
            if fate == 1:
                kept += itertools.chain.from_iterable(batches)
            elif fate == 2:
                whole = rng.randrange(len(batches))
                kept += itertools.chain.from_iterable(batches[:whole])
                kept += [store for store in batches[whole] if rng.random() < 0.5]
        yield tuple(kept)


def fewer(lines: Lines, kept: Sequence[Store]) -> Iterator[tuple[Store, ...]]:
    """Yield what else may be kept with one store less, for making a failing case smaller."""
    chosen = {store.number for store in kept}
    for _, batches in sorted(lines.pending.items()):
        for batch in reversed(batches):
            present = [store for store in batch if store.number in chosen]
            if present:
                for store in reversed(present):
                    yield tuple(other for other in kept if other.number != store.number)
                break  # only the last batch of a line can lose one: what is kept is a prefix


def describe(stores: Sequence[Store]) -> Iterator[str]:
    """Yield stores for people: those of one line of the program that follow each other as one."""
    runs: list[list[Store]] = []
    for store in stores:
        last = runs[-1][-1] if runs else None
        if (
            last is not None
            and (last.number + 1, last.where) == (store.number, store.where)
            and last.offset + len(last.data) == store.offset
        ):
            runs[-1].append(store)
        else:
            runs.append([store])
    for run in runs:
        data = b"".join(store.data for store in run)
        name = f"store {run[0].number}" if len(run) == 1 else f"stores {run[0].number} to {run[-1].number}"
        shown = data[:16].hex(" ") + (" ..." if len(data) > 16 else "")
        yield f"{name}: {len(data)} bytes at {run[0].offset:#x} ({shown}), {run[0].where}"
