"""Programs for mock ranks to start from: how data is cut among tasklets, moved by DMA, and joined again.

Elements are 32-bit little-endian integers unless said otherwise. Every kernel works on blocks of :data:`BLOCK_BYTES`,
each tasklet on every so-many-th block, which is how UPMEM's own examples do it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hal_mocks.upmem_program import Mram, Program, Wram

if TYPE_CHECKING:
    from hal_mocks.upmem_context import Context

BLOCK_BYTES = 1024
HISTOGRAM_BINS = 64
PHRASE_BYTES = 64


def blocks(ctx: Context, total_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of this tasklet's blocks; the last one is rounded up to whole 8 bytes."""
    for offset in range(ctx.me() * BLOCK_BYTES, total_bytes, ctx.tasklets * BLOCK_BYTES):
        yield offset, min(BLOCK_BYTES, -(-(total_bytes - offset) // 8) * 8)


def double(ctx: Context) -> None:
    """Write twice each of ``count`` elements of ``input`` to ``output``."""
    buffer = ctx.mem_alloc(BLOCK_BYTES, "<u4")
    for offset, length in blocks(ctx, 4 * ctx.wram("count")[0]):
        part = buffer[: length // 4]
        ctx.mram_read("input", offset, part)
        part *= 2
        ctx.spend(len(part))
        ctx.mram_write(part, "output", offset)
    if ctx.me() == 0:
        ctx.printf("doubled %d elements\n", ctx.wram("count")[0])


def add(ctx: Context) -> None:
    """Write the sums of ``a`` and ``b`` to ``c``."""
    left, right = ctx.mem_alloc(BLOCK_BYTES, "<u4"), ctx.mem_alloc(BLOCK_BYTES, "<u4")
    for offset, length in blocks(ctx, 4 * ctx.wram("count")[0]):
        ctx.mram_read("a", offset, left[: length // 4])
        ctx.mram_read("b", offset, right[: length // 4])
        left += right
        ctx.spend(len(left))
        ctx.mram_write(left[: length // 4], "c", offset)


def total(ctx: Context) -> None:
    """Sum ``count`` elements: each tasklet its part, then, after a barrier, the first one the parts."""
    if ctx.me() == 0:
        ctx.mem_reset()
    ctx.barrier()
    buffer = ctx.mem_alloc(BLOCK_BYTES, "<u4")
    count = ctx.wram("count")[0]
    found = 0
    for offset, length in blocks(ctx, 4 * count):
        ctx.mram_read("input", offset, buffer[: length // 4])
        found += int(buffer[: min(length // 4, count - offset // 4)].sum(dtype="u8"))
    ctx.wram("partial")[ctx.me()] = found
    ctx.barrier()
    if ctx.me() == 0:
        ctx.wram("sum")[0] = sum(ctx.wram("partial")[: ctx.tasklets].tolist())


def histogram(ctx: Context) -> None:
    """Count ``count`` bytes by value modulo the number of bins; the shared bins are guarded by a mutex."""
    buffer = ctx.mem_alloc(BLOCK_BYTES)
    bins = ctx.wram("bins")
    size = ctx.wram("count")[0]
    for offset, length in blocks(ctx, size):
        ctx.mram_read("input", offset, buffer[:length])
        mine = [0] * HISTOGRAM_BINS
        for value in buffer[: min(length, size - offset)].tolist():
            mine[value % HISTOGRAM_BINS] += 1
        for which, found in enumerate(mine):
            if found:
                with ctx.mutex("bins"):
                    bins[which] = bins[which] + found


def search(ctx: Context) -> None:
    """Count where ``phrase`` begins in ``text``, overlaps included. A block is read with what follows it."""
    length = ctx.wram("phrase_length")[0]
    phrase = bytes(ctx.wram("phrase")[:length].tolist())
    size = ctx.wram("count")[0]
    buffer = ctx.mem_alloc(BLOCK_BYTES + PHRASE_BYTES)
    found = 0
    for offset, _ in blocks(ctx, size):
        read = min(BLOCK_BYTES + PHRASE_BYTES, -(-(size - offset) // 8) * 8)
        ctx.mram_read("text", offset, buffer[:read])
        window = buffer[: min(read, size - offset, BLOCK_BYTES + length - 1)].tobytes()
        at = window.find(phrase)
        while at >= 0:
            found += 1
            at = window.find(phrase, at + 1)
        ctx.spend(len(window))
    ctx.wram("found")[ctx.me()] = found


DOUBLE = Program(
    name="double",
    kernel=double,
    tasklets=4,
    symbols={"input": Mram(64 << 10, "<u4"), "output": Mram(64 << 10, "<u4"), "count": Wram(4, "<u4")},
)
ADD = Program(
    name="vector-add",
    kernel=add,
    tasklets=16,
    symbols={
        "a": Mram(1 << 20, "<u4"),
        "b": Mram(1 << 20, "<u4"),
        "c": Mram(1 << 20, "<u4"),
        "count": Wram(4, "<u4"),
    },
)
TOTAL = Program(
    name="reduction",
    kernel=total,
    tasklets=16,
    symbols={
        "input": Mram(1 << 20, "<u4"),
        "count": Wram(4, "<u4"),
        "partial": Wram(8 * 24, "<u8"),
        "sum": Wram(8, "<u8"),
    },
)
HISTOGRAM = Program(
    name="histogram",
    kernel=histogram,
    tasklets=12,
    symbols={"input": Mram(1 << 20), "count": Wram(4, "<u4"), "bins": Wram(4 * HISTOGRAM_BINS, "<u4")},
)
SEARCH = Program(
    name="phrase-search",
    kernel=search,
    tasklets=11,
    symbols={
        "text": Mram(1 << 20),
        "count": Wram(4, "<u4"),
        "phrase": Wram(PHRASE_BYTES),
        "phrase_length": Wram(4, "<u4"),
        "found": Wram(4 * 24, "<u4"),
    },
)
