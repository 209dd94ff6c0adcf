from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from hal.drivers.contract import Grant, HostRoot
from hal.drivers.guard import OpenGuard
from hal.errors import AccessDenied, DeviceBusy, DeviceGone, InvalidArgument, StaleFence, UncorrectableError
from hal.interfaces.deadline import Deadline
from hal.interfaces.pmem import NamespaceMode, PersistenceDomain
from hal.model.attributes import Absence
from hal_pmem.driver import PmemDriver
from hal_pmem.file_label import DATA_OFFSET_BYTES
from hal_pmem.file_setup import create_region, find_files

MIB = 1 << 20
SIZE = 8 * MIB
SOON = 30.0


def soon() -> Deadline:
    return Deadline.after(SOON)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "HAL_PMEM_FILES": f"{tmp_path}/data.pmem=8M",
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }


@pytest.fixture
def driver(environ: dict[str, str]) -> PmemDriver:
    return PmemDriver([HostRoot(node="n1")], environ)


def only(driver: PmemDriver):
    (device,) = (found for found in driver.discover(soon()).devices if found.value("media") == "file")
    return device


def opened(driver: PmemDriver):
    return driver.open(only(driver).id, OpenGuard(), soon())


# --- what is configured


def test_a_file_that_is_asked_for_is_made_once_and_stays_the_same(driver, environ, tmp_path):
    first = only(driver)
    again = only(PmemDriver([HostRoot(node="n1")], environ))
    assert first == again
    assert len(first.id) == len("pmem-") + 16
    assert first.capacity == {"memory_bytes": SIZE}
    assert first.value("path") == str(tmp_path / "data.pmem")
    assert (tmp_path / "data.pmem").stat().st_blocks * 512 >= SIZE, "a full disk is found now, not by a store"


def test_identity_and_namespaces_move_with_the_file(driver, environ, tmp_path):
    before = only(driver)
    (tmp_path / "data.pmem").rename(tmp_path / "moved.pmem")
    environ["HAL_PMEM_FILES"] = str(tmp_path / "moved.pmem")
    after = only(PmemDriver([HostRoot(node="n1")], environ))
    assert (after.id, after.value("mode")) == (before.id, before.value("mode"))
    assert after.name == "moved"


def test_every_region_file_of_a_folder_is_found(tmp_path):
    for name in ("b.pmem", "a.pmem"):
        create_region(str(tmp_path / name), SIZE)
    (tmp_path / "notes.txt").write_text("mine")
    regions, problems = find_files(str(tmp_path))
    assert [region.name for region in regions] == ["a", "b"]
    assert not problems


def test_a_file_of_somebody_elses_is_left_alone(tmp_path):
    (tmp_path / "thesis.pmem").write_bytes(b"years of work" * 1000)
    regions, (problem,) = find_files(f"{tmp_path}/thesis.pmem=8M")
    assert not regions
    assert "left alone" in problem.detail
    assert not problem.fatal
    assert (tmp_path / "thesis.pmem").read_bytes().startswith(b"years of work")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("relative.pmem=8M", "relative"),
        ("/nonexistent/folder/r.pmem=8M", "No such file"),
        ("/tmp/never.pmem=3M", "whole multiples of 2 MiB"),
        ("/tmp/never.pmem=lots", "is no size"),
        ("/tmp/never-there.pmem", "No such file"),
    ],
)
def test_a_mistake_in_the_variable_is_one_line_and_hides_nothing(tmp_path, text, words):
    good = create_region(str(tmp_path / "good.pmem"), SIZE)
    regions, (problem,) = find_files(f"{text}:{good.path}")
    assert words in problem.detail
    assert [region.id for region in regions] == [good.id]


def test_a_copy_is_told_from_the_region_it_copies(tmp_path):
    region = create_region(str(tmp_path / "a.pmem"), SIZE)
    (tmp_path / "b.pmem").write_bytes((tmp_path / "a.pmem").read_bytes())
    regions, (problem,) = find_files(str(tmp_path))
    assert [found.path for found in regions] == [region.path]
    assert "copy" in problem.detail


def test_two_processes_that_make_one_file_get_one_region(tmp_path):
    path = tmp_path / "raced.pmem"
    code = "import sys; from hal_pmem.file_setup import find_files; print(find_files(sys.argv[1])[0][0].id)"
    racers = [
        subprocess.Popen([sys.executable, "-c", code, f"{path}=8M"], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    ids = {racer.communicate(timeout=60)[0].strip() for racer in racers}
    assert len(ids) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["raced.pmem"], "no half-made file is left"


# --- what it says of itself


def test_a_file_never_says_that_it_is_persistent_memory(driver):
    device = only(driver)
    assert device.value("media") == "file"
    assert device.value("persistent") is False
    assert device.value("persistence_domain") == "none"
    assert device.value("persistence") in ("msync", "none")
    with opened(driver) as region:
        assert region.region().persistence_domain is PersistenceDomain.NONE
        with region.map("namespace0.0") as mapping:
            assert str(mapping.persistence) == device.value("persistence")


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="no tmpfs at /dev/shm to try a volatile file on")
def test_a_file_in_memory_says_that_it_does_not_outlive_the_power(environ):
    path = f"/dev/shm/file-{os.getpid()}.pmem"
    environ["HAL_PMEM_FILES"] = f"{path}=4M"
    try:
        driver = PmemDriver([HostRoot(node="n1")], environ)
        assert only(driver).value("persistence") == "none"
        with opened(driver) as region, region.map("namespace0.0") as mapping:
            assert mapping.persistence == "none"
    finally:
        os.unlink(path)


def test_the_switch_of_libpmems_tests_is_not_believed(driver, forced_libpmem):
    with opened(driver) as region, region.map("namespace0.0") as mapping:
        assert mapping.persistence == "forced"
        mapping.memcpy_persist(0, b"stored by libpmem")
        assert mapping.read(0, 17) == b"stored by libpmem"


def test_without_libpmem_it_works_by_msync(driver, monkeypatch):
    monkeypatch.setattr("hal_pmem.memory.load", lambda: "libpmem.so.1 is not here")
    with opened(driver) as region, region.map("namespace0.0") as mapping:
        mapping.memcpy_persist(100, b"stored")
        assert mapping.read(100, 6) == b"stored"
        mapping.persist(0, 0)
        mapping.persist(mapping.size_bytes, 0)


def test_a_file_has_no_module_and_says_so(driver):
    with opened(driver) as region:
        told = region.telemetry()
    assert told["temperature_celsius"].absent is Absence.UNSUPPORTED


# --- what becomes of bytes


def test_bytes_are_in_the_file_where_the_label_says(driver, tmp_path):
    with opened(driver) as region, region.map("namespace0.0") as mapping:
        mapping.memcpy_persist(4096, b"here")
    data = (tmp_path / "data.pmem").read_bytes()
    assert data[DATA_OFFSET_BYTES + 4096 :][:4] == b"here"


HOLDER = textwrap.dedent(
    """
    import os, sys
    from hal.drivers.contract import HostRoot
    from hal.drivers.guard import OpenGuard
    from hal.interfaces.deadline import Deadline
    from hal_pmem.driver import PmemDriver

    driver = PmemDriver([HostRoot(node="n1")], os.environ)
    region = driver.open(sys.argv[1], OpenGuard(), Deadline.after(30))
    mapping = region.map("namespace0.0")
    mapping.memcpy_persist(0, b"persisted")
    mapping.buffer[100:106] = b"stored"
    print("ready", flush=True)
    sys.stdin.read()
    """
)


@pytest.fixture
def holder(driver, environ):
    """Another process that has the region mapped."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, only(driver).id],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    yield child
    child.kill()
    child.wait(30)
    for pipe in (child.stdin, child.stdout):
        pipe.close()


def test_what_was_persisted_outlives_a_killed_process(driver, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait(30)
    with opened(driver) as region, region.map("namespace0.0", read_only=True) as mapping:
        assert mapping.read(0, 9) == b"persisted"
        assert mapping.read(100, 6) == b"stored", "the kernel keeps the pages of a process that dies"


def test_a_region_is_not_given_back_while_any_process_has_it_mapped(driver, holder):
    device = only(driver)
    grant = Grant(lease="a", fence=7)
    with pytest.raises(DeviceBusy, match="mapped by a process"):
        driver.unprepare(device.id, grant, soon())
    with pytest.raises(DeviceBusy):
        driver.scrub(device.id).wait(soon())
    with opened(driver) as region, pytest.raises(DeviceBusy):
        region.plan_destroy("namespace0.0")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait(30)
    driver.unprepare(device.id, grant, soon())


def test_memory_that_was_handed_out_stays_and_counts_as_used_until_it_is_let_go(driver):
    device = only(driver)
    with opened(driver) as region:
        words = region.map("namespace0.0").array("u8")
    words[0] = 42
    with pytest.raises(DeviceBusy):
        driver.unprepare(device.id, Grant(lease="a", fence=1), soon())
    del words
    driver.unprepare(device.id, Grant(lease="a", fence=1), soon())


def test_a_verb_that_somebody_kept_holds_no_memory(driver):
    device = only(driver)
    with opened(driver) as region:
        mapping = region.map("namespace0.0")
        persist = mapping.persist
        mapping.close()
        with pytest.raises(InvalidArgument, match="closed"):
            persist(0, 8)
    driver.unprepare(device.id, Grant(lease="a", fence=1), soon())


def test_bytes_that_the_file_lost_are_an_error_and_no_signal(driver, tmp_path):
    with opened(driver) as region, region.map("namespace0.0") as mapping:
        os.truncate(tmp_path / "data.pmem", DATA_OFFSET_BYTES + 4096)
        with pytest.raises(UncorrectableError, match="bytes 4096 to 4104 of namespace0"):
            mapping.read(4096, 8)
        assert mapping.read(0, 8) == bytes(8)


def test_copying_out_of_a_mapping_by_the_kernel_meets_lost_pages_as_an_error(driver, tmp_path):
    from hal_pmem.poison import copy_by_write

    with opened(driver) as region, region.map("namespace0.0") as mapping:
        mapping.memcpy_persist(8190, b"edge")
        view = mapping.buffer
        assert copy_by_write(view, 8188, 8, device="d", name="n") == b"\0\0edge\0\0"
        os.truncate(tmp_path / "data.pmem", DATA_OFFSET_BYTES + 8192)
        with pytest.raises(UncorrectableError, match="bytes 8192 to 8196"):
            copy_by_write(view, 8188, 8, device="d", name="n")
        view.release()


def test_a_region_that_went_is_gone_and_its_lease_can_end(driver, tmp_path):
    device = only(driver)
    (tmp_path / "data.pmem").unlink()
    with pytest.raises(DeviceGone):
        driver.prepare(device.id, Grant(lease="a", fence=1), soon())
    driver.unprepare(device.id, Grant(lease="a", fence=1), soon())


def look_as_a_user(driver) -> str:
    if os.getuid() == 0:  # root may write everything
        os.setgid(65534)
        os.setuid(65534)
    if {one.type for one in only(driver).conditions} != {"ReadOnly"}:
        return "the condition does not say that it is read-only"
    with opened(driver) as region:
        try:
            region.map("namespace0.0")
        except AccessDenied:
            pass
        else:
            return "it was mapped for writing"
        with region.map("namespace0.0", read_only=True) as mapping:
            return "" if mapping.read(0, 1) == b"\0" else "it cannot be read"


def test_a_file_that_may_not_be_written_is_read_only(environ):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        environ["HAL_PMEM_FILES"] = f"{folder}/data.pmem=4M"
        driver = PmemDriver([HostRoot(node="n1")], environ)
        only(driver)
        os.chmod(f"{folder}/data.pmem", 0o444)
        child = os.fork()
        if child == 0:
            wrong = "it raised"
            try:
                wrong = look_as_a_user(driver)
            finally:
                os.write(2, wrong.encode())
                os._exit(1 if wrong else 0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_clearing_zeroes_whole_granules(driver):
    with opened(driver) as region, region.map("namespace0.0") as mapping:
        mapping.memcpy_persist(0, b"\xff" * 12288)
        with pytest.raises(InvalidArgument):
            mapping.clear_poison(0, 512)
        mapping.clear_poison(4096, 4096)
        assert mapping.read(4095, 4098) == b"\xff" + bytes(4096) + b"\xff"


def test_the_fence_outlives_the_driver(driver, environ):
    device = only(driver)
    driver.prepare(device.id, Grant(lease="new", fence=20), soon())
    with pytest.raises(StaleFence):
        PmemDriver([HostRoot(node="n1")], environ).prepare(device.id, Grant(lease="old", fence=19), soon())


def test_a_forked_child_does_not_use_its_parents_mapping(driver):
    with opened(driver) as region, region.map("namespace0.0") as mapping:
        child = os.fork()
        if child == 0:
            try:
                mapping.read(0, 1)
            except InvalidArgument as error:
                os._exit(0 if "forked" in str(error) else 3)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert mapping.read(0, 1) == b"\0"


# --- through the broker


def test_a_file_can_be_claimed_opened_mapped_and_released(environ):
    from hal.api.opening import open_broker

    environ.pop("HAL_MACHINE", None)
    with open_broker(environ) as broker:
        with broker.claim("pmem", where='media == "file"') as lease:
            region = lease.open()
            with region.map(region.namespaces()[0].name) as mapping:
                mapping.memcpy_persist(0, b"leased")
        with broker.claim("pmem") as lease, lease.open().map("namespace0.0") as mapping:
            assert mapping.read(0, 6) == b"leased"


def test_namespaces_of_any_mode_can_be_made_and_only_memory_is_mapped(tmp_path, environ):
    create_region(str(tmp_path / "empty.pmem"), SIZE, namespace=False)
    environ["HAL_PMEM_FILES"] = str(tmp_path / "empty.pmem")
    driver = PmemDriver([HostRoot(node="n1")], environ)
    assert only(driver).why_absent("mode") is Absence.NOT_REPORTED
    with opened(driver) as region:
        for mode in NamespaceMode:
            region.confirm(region.plan_create(mode, 2 * MIB)).wait(soon())
        assert region.region().available_bytes == 0
        assert [namespace.offset_bytes for namespace in region.namespaces()] == [0, 2 * MIB, 4 * MIB, 6 * MIB]
    assert only(driver).value("mode") == ("raw", "sector", "fsdax", "devdax")
