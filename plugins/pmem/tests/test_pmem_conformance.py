from __future__ import annotations

from pathlib import Path

import pytest

from hal.drivers.contract import HostRoot
from hal.testing.kinds.pmem import PmemConformance
from hal_pmem.driver import PmemDriver
from hal_pmem.file_setup import create_region

SIZE = 16 << 20


class TestFileRegions(PmemConformance):
    """Nobody can poison a file's blocks or cut the power of the disk under it from a test."""

    lacks = frozenset({"poison", "power-failure", "reset"})

    @pytest.fixture
    def driver(self, tmp_path: Path) -> PmemDriver:
        folder = tmp_path / "regions"
        folder.mkdir()
        for name in ("first", "second"):
            create_region(str(folder / f"{name}.pmem"), SIZE, namespace=False)
        environ = {"HAL_PMEM_FILES": str(folder), "XDG_RUNTIME_DIR": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
        return PmemDriver([HostRoot(node="n1")], environ)


class TestForcedFileRegions(TestFileRegions):
    """The same through libpmem, as on real persistent memory, because its own test switch says so."""

    @pytest.fixture
    def driver(self, tmp_path: Path, forced_libpmem: None) -> PmemDriver:
        folder = tmp_path / "regions"
        folder.mkdir()
        create_region(str(folder / "only.pmem"), SIZE, namespace=False)
        environ = {"HAL_PMEM_FILES": str(folder), "XDG_RUNTIME_DIR": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
        return PmemDriver([HostRoot(node="n1")], environ)
