"""Power failures of mock persistent memory: what of the stores may survive, chosen by a seed.

The model is that of the platforms (Intel SDM on CLWB and SFENCE, the SNIA programming model). Flushed and drained lines
survive. Of a line that is dirty, or flushed and not yet drained, any subset of its changed 8-byte words survives: the
cache may have written it back at any moment, or never. Lines are independent of each other.

Stores through a zero-copy buffer cannot be observed one by one, so dirty words are found by comparing what the
processors see with what is durable. Hence two differences from x86. A word that was stored twice since its last flush
survives as the old or the newest value, never as the one between. And x86 keeps the order of two stores to the *same*
line, which is not promised here (nor by Arm without a barrier): a program that is right under this model is right on
both.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from hal.errors import DeviceNotFound
from hal.interfaces.pmem import ATOMIC_BYTES, PersistenceDomain
from hal_mocks.machine import Machine
from hal_mocks.pmem_files import CHUNK_BYTES, data_extents
from hal_mocks.pmem_region import RegionStore

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class PowerLoss(msgspec.Struct, frozen=True, kw_only=True):
    """What a power failure did to one region: words of 8 bytes that were not durable, and how many of them stayed."""

    region: str
    dirty_lines: int = 0
    dirty_words: int = 0
    kept_words: int = 0


def power_failure(
    machine: Machine, region: str | None = None, host: str | None = None, seed: int | None = None
) -> tuple[PowerLoss, ...]:
    """Cut the power of one region (id or name), of one host, or of all hosts.

    Open handles are dead afterwards and must be opened again. The same seed and the same state give the same outcome;
    without a seed the machine's own is used, mixed with the number of earlier failures.
    """
    losses: list[PowerLoss] = []
    for owner in machine.graph.hosts:
        if host is not None and owner.name != host:
            continue
        for candidate in owner.pmem:
            store = RegionStore(machine, candidate)
            if region is None or region in (store.device_id, candidate.name):
                losses.append(_cut(store, seed))
    if not losses:
        raise DeviceNotFound(
            "no persistent memory of that name on this mock machine",
            device=region or host or machine.graph.name,
            during="power_failure",
            hint="hal-probe list",
        )
    return tuple(losses)


def survivors(rng: random.Random, words: NDArray[np.int64], line_bytes: int) -> NDArray[np.bool_]:
    """Choose which dirty words (by their index) survive.

    Each line was written back never, in time, or at some moment between, with equal odds: the extremes are the likely
    cases, and mere coin tosses for every word would hardly ever show them on a line with many.
    """
    import numpy as np

    chooser = np.random.default_rng(rng.getrandbits(64))
    lines, line_of_word = np.unique(words // (line_bytes // ATOMIC_BYTES), return_inverse=True)
    fate = chooser.integers(0, 3, size=len(lines))[line_of_word]
    tossed = chooser.integers(0, 2, size=len(words), dtype=np.int8)
    kept: NDArray[np.bool_] = (fate == 1) | ((fate == 2) & (tossed == 1))
    return kept


def _cut(store: RegionStore, seed: int | None) -> PowerLoss:
    with store.locked():
        record = store.load()
        chosen = seed if seed is not None else store.machine.graph.seed
        rng = random.Random(f"{chosen}/{store.device_id}/{record.dirty_shutdowns if seed is None else ''}")
        memory = store.memory_path(record.epoch)
        media = store.media_path()
        loss = PowerLoss(region=store.device_id)
        if media is not None:
            loss = _write_back(store, memory, media, rng)
        if store.domain is PersistenceDomain.NONE:
            store.begin_epoch(record, None)
            return loss
        record.dirty_shutdowns += 1
        store.begin_epoch(record, media or memory)
        return loss


def _write_back(store: RegionStore, memory: Path, media: Path, rng: random.Random) -> PowerLoss:
    import numpy as np

    line_bytes = store.region.line_bytes
    lines = words = kept = 0
    seen = os.open(memory, os.O_RDONLY | os.O_CLOEXEC)
    durable = os.open(media, os.O_RDWR | os.O_CLOEXEC)
    try:
        for start, end in _either(seen, durable):
            now = np.frombuffer(os.pread(seen, end - start, start), dtype="u8")
            image = np.frombuffer(bytearray(os.pread(durable, end - start, start)), dtype="u8")
            dirty = np.flatnonzero(now != image)
            if not len(dirty):
                continue
            keep = dirty[survivors(rng, dirty, line_bytes)]
            lines += len(np.unique(dirty // (line_bytes // ATOMIC_BYTES)))
            words += len(dirty)
            kept += len(keep)
            if len(keep):
                image[keep] = now[keep]
                os.pwrite(durable, image.tobytes(), start)
    finally:
        os.close(seen)
        os.close(durable)
    return PowerLoss(region=store.device_id, dirty_lines=lines, dirty_words=words, kept_words=kept)


def _either(first: int, second: int) -> list[tuple[int, int]]:
    """Return the extents where either file has data, as pieces that do not overlap."""
    pieces = sorted([*data_extents(first), *data_extents(second)])
    joined: list[tuple[int, int]] = []
    for start, end in pieces:
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return [(part, min(part + CHUNK_BYTES, end)) for start, end in joined for part in range(start, end, CHUNK_BYTES)]
