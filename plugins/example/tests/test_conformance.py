from __future__ import annotations

from pathlib import Path

import pytest

from hal.drivers.contract import HostRoot
from hal.testing.kinds.pmem import PmemConformance
from hal_example.driver import ExampleDriver
from hal_example.tree import write_tree


class TestExample(PmemConformance):
    lacks = frozenset({"create", "poison", "power-failure", "reset"})

    @pytest.fixture
    def driver(self, tmp_path: Path) -> ExampleDriver:
        write_tree(tmp_path, cards=2)
        return ExampleDriver([HostRoot(node="n1", root=str(tmp_path))])
