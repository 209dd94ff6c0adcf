"""AMD's own library, where it is there: it names boards, and its absence or its failure costs nothing else."""

from __future__ import annotations

import sys
import types

import pytest

from hal.drivers.guard import OpenGuard
from hal.interfaces.deadline import Deadline
from hal_amd import smi
from plugins.amd.tests.amd_trees import AmdMachine

SOON = 20.0


@pytest.fixture
def machine(tmp_path):
    return AmdMachine(tmp_path)


@pytest.fixture
def driver(machine):
    return machine.driver()


def opened(driver, device_id):
    return driver.open(device_id, OpenGuard(), Deadline.after(SOON))


def _library(**changes):
    library = types.ModuleType("amdsmi")
    members = {
        "amdsmi_init": lambda: None,
        "amdsmi_get_processor_handles": lambda: ["a", "b"],
        "amdsmi_get_gpu_device_bdf": {"a": "0000:03:00.0", "b": "0000:13:00.0"}.__getitem__,
        "amdsmi_get_gpu_asic_info": lambda handle: {"market_name": "AMD Instinct MI300X"},
        "amdsmi_get_gpu_board_info": lambda handle: {"product_name": "N/A"},
    }
    for name, member in (members | changes).items():
        setattr(library, name, member)
    return library


def test_the_library_names_boards(monkeypatch):
    monkeypatch.setitem(sys.modules, "amdsmi", _library())
    assert smi.names(smi.load()) == dict.fromkeys(("0000:03:00.0", "0000:13:00.0"), "AMD Instinct MI300X")


def test_a_gpu_that_the_library_cannot_name_hides_no_other(monkeypatch):
    def asic(handle):
        if handle == "a":
            raise RuntimeError("AMDSMI_STATUS_BUSY")
        return {"market_name": "0x74a1"}

    board = {"product_name": "MI300X OAM"}
    library = _library(amdsmi_get_gpu_asic_info=asic, amdsmi_get_gpu_board_info=lambda handle: board)
    monkeypatch.setitem(sys.modules, "amdsmi", library)
    assert smi.names(smi.load()) == {"0000:13:00.0": "MI300X OAM"}


def test_a_library_that_breaks_at_import_is_no_library(monkeypatch, tmp_path, capfd):
    """As amdsmi 7.0.2 does without libamd_smi.so: it prints, and raises KeyError."""
    (tmp_path / "amdsmi.py").write_text(
        "print('Unable to find libamd_smi.so library')\nraise KeyError('libamd_smi.so')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "amdsmi", raising=False)
    assert smi.load() is None
    assert capfd.readouterr() == ("", "")


def test_the_library_is_not_asked_about_a_tree(machine, monkeypatch):
    library = _library(amdsmi_init=lambda: pytest.fail("it speaks for the running machine only"))
    monkeypatch.setitem(sys.modules, "amdsmi", library)
    machine.tree.remove(f"{machine.path(0)}/product_name")
    gpu = machine.driver().discover(Deadline.after(SOON)).devices[0]
    assert (gpu.value("model"), gpu.attributes["model"].source) == ("AMD Instinct MI300X", "catalog")
