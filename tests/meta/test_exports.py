from __future__ import annotations

import subprocess
import sys

import hal


def test_every_public_name_can_be_had():
    assert sorted(hal.__all__) == sorted(hal._HOMES)
    for name in hal.__all__:
        assert getattr(hal, name).__module__.startswith("hal")


def test_importing_hal_imports_nothing_else_of_it():
    code = "import sys, hal; print([m for m in sys.modules if m.startswith('hal.') or m in ('numpy', 'msgspec')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
