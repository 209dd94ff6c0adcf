"""The conformance kit over the simulator's libdpu.so: the plugin's own code, its programs in C."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hal.testing.kinds.upmem import UpmemConformance
from hal_upmem.driver import UpmemDriver
from plugins.upmem.tests.conftest import Room

DOUBLE = """
#include <defs.h>
#include <mram.h>
#include <stdint.h>
#include <stdio.h>

__mram_noinit uint32_t input[16384];
__mram_noinit uint32_t output[16384];
__host uint32_t count;

int main(void)
{
    __dma_aligned uint32_t block[64];
    for (uint32_t start = me() * 64; start < count; start += NR_TASKLETS * 64) {
        mram_read(&input[start], block, sizeof block);
        for (int each = 0; each < 64; each++)
            block[each] *= 2;
        mram_write(block, &output[start], sizeof block);
    }
    printf("tasklet %u\\n", me());
    return 0;
}
"""

FAULTY = """
#include <defs.h>
#include <mram.h>

__mram_noinit char area[64];

int main(void)
{
    __dma_aligned char block[64];
    if (me() == 0)
        mram_read(area + 4, block, 8);
    return 0;
}
"""


class TestSimulatedRank(UpmemConformance):
    @pytest.fixture
    def driver(self, room: Room) -> UpmemDriver:
        return UpmemDriver(room.hosts, room.environ)

    @pytest.fixture
    def program(self, compiled: Callable[..., Path]) -> Path:
        return compiled(DOUBLE)

    @pytest.fixture
    def faulty_program(self, compiled: Callable[..., Path]) -> Path:
        return compiled(FAULTY)
