from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hal_pmem.libpmem import SONAME, load, open_library


@pytest.fixture
def forced_libpmem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libpmem that calls every file persistent, as its own tests have it: a copy, which reads its switch anew."""
    assert not isinstance(load(), str), f"apt install libpmem1: {load()}"
    lines = Path("/proc/self/maps").read_text().splitlines()
    original = next(line.split()[-1] for line in lines if "/libpmem.so" in line)
    copy = shutil.copy(original, tmp_path / SONAME)
    monkeypatch.setenv("PMEM_IS_PMEM_FORCE", "1")
    library = open_library(str(copy))
    monkeypatch.setattr("hal_pmem.memory.load", lambda: library)
