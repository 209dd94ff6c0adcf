"""UCX that aborts, hangs, fails or is not there: one line for whoever asks, and the asking process lives."""

from __future__ import annotations

import subprocess

import pytest

from hal.interfaces.deadline import Deadline
from hal_rdma.ucx.library import choose_library
from hal_rdma.ucx.probe import ask_ucx

FAKE = """
#include <stdlib.h>
#include <unistd.h>
void ucp_get_version(unsigned* a, unsigned* b, unsigned* c) { *a = 1; *b = 99; *c = 0; }
const char* ucs_status_string(signed char status) { return "broken on purpose"; }
signed char ucp_config_read(const char* a, const char* b, void** config) { *config = 0; return 0; }
signed char ucp_config_modify(void* config, const char* a, const char* b) { return 0; }
void ucp_config_release(void* config) {}
signed char ucp_init_version(unsigned a, unsigned b, void* c, void* d, void* e) { WHAT; }
"""


@pytest.fixture
def fake_ucx(tmp_path):
    """A system libucp whose initialisation does as told, in a folder that the loader searches first."""

    def build(what):
        source = tmp_path / "fake.c"
        source.write_text(FAKE.replace("WHAT", what))
        for soname in ("libucp.so.0", "libucs.so.0"):
            subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / soname, source], check=True, timeout=60)
        return {"HAL_RDMA_UCX": "system", "LD_LIBRARY_PATH": str(tmp_path)}

    return build


@pytest.mark.parametrize("origin", ["wheel", "system"])
def test_both_libraries_answer_with_their_version(origin):
    answer = ask_ucx({"HAL_RDMA_UCX": origin}, Deadline.after(20))
    assert answer.works, answer.why_not
    assert answer.library.startswith("UCX 1.")
    assert origin in answer.library


def test_an_abort_is_one_line(fake_ucx):
    answer = ask_ucx(fake_ucx("abort()"), Deadline.after(20))
    assert not answer.works
    assert answer.why_not == "UCX (system) died of SIGABRT"


def test_a_segmentation_fault_is_one_line(fake_ucx):
    answer = ask_ucx(fake_ucx("*(volatile int*)8 = 1; return 0"), Deadline.after(20))
    assert answer.why_not.startswith("UCX (system) died of SIGSEGV")


def test_a_hang_ends_at_the_deadline(fake_ucx):
    answer = ask_ucx(fake_ucx("pause(); return 0"), Deadline.after(2))
    assert "did not answer in time" in answer.why_not


def test_an_error_of_ucx_is_told_in_its_words(fake_ucx):
    answer = ask_ucx(fake_ucx("return -14"), Deadline.after(20))
    assert "broken on purpose" in answer.why_not
    assert "\n" not in answer.why_not


def test_transports_that_do_not_exist_are_told():
    answer = ask_ucx({}, Deadline.after(20), settings={"TLS": "carrier_pigeon"})
    assert "UCX_TLS" in answer.why_not or "TLS=carrier_pigeon" in answer.why_not


def test_a_wheel_is_never_chosen_for_hardware():
    assert choose_library({}, software=False) == "system"
    answer = ask_ucx({"HAL_RDMA_UCX": "wheel"}, Deadline.after(5), software=False)
    assert "reaches no HCA" in answer.why_not


def test_a_word_that_names_no_library_is_refused():
    assert "names no library" in ask_ucx({"HAL_RDMA_UCX": "newest"}, Deadline.after(5)).why_not
