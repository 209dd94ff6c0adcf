"""What the pmem plugin must do on a kernel with NVDIMMs. Run as root, in a machine whose NVDIMMs nobody misses.

    python pmem_region.py --phase write     creates namespaces, writes logs that are persisted, breaks blocks
    (power off, boot again with the same NVDIMMs)
    python pmem_region.py --phase verify    finds all of it

Every check is one JSON line, ``{"check": ..., "ok": true, "detail": ...}``; the status is 1 if one failed. The modules
nfit, nd_pmem, dax_pmem and device_dax (or dax_hmem's like) must be loaded; ndctl, mkfs.ext4 and libpmem1 installed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hal.drivers.contract import Grant, HostRoot
from hal.drivers.guard import OpenGuard
from hal.errors import DeviceBusy, HalError, UncorrectableError, Unsupported
from hal.interfaces.deadline import Deadline
from hal.interfaces.pmem import NamespaceMode, PersistenceDomain
from hal.model.event import Event, EventType
from hal_mocks.examples.append_log import AppendLog
from hal_pmem.driver import PmemDriver
from hal_pmem.file_label import DATA_OFFSET_BYTES
from hal_pmem.memory import Persistence
from hal_pmem.poison import file_extents

MIB = 1 << 20
DEVDAX_BYTES = 64 * MIB
RECORDS = 200
MOUNT = Path("/mnt/hal-pmem")
REGION_FILE = MOUNT / "log.pmem"
BROKEN_OFFSET = 4 * MIB
"""Where in the region file blocks are broken: far behind the log."""

failures = 0


def check(name: str, work: Callable[[], object]) -> object:
    """Print how a check went, and go on whatever it raised."""
    global failures
    start = time.monotonic()
    try:
        detail, ok = work(), True
    except Exception as error:  # the report is the point: one failure must not hide the checks behind it
        detail, ok = f"{type(error).__name__}: {error}", False
        failures += 1
    seconds = round(time.monotonic() - start, 2)
    print(json.dumps({"check": name, "ok": ok, "detail": _plain(detail), "seconds": seconds}), flush=True)
    return detail if ok else None


def _plain(detail: object) -> object:
    return detail if isinstance(detail, str | int | float | bool | list | dict | None) else str(detail)


def record(number: int) -> bytes:
    """Return what the log holds at a place: bytes that tell their number."""
    return f"record {number} ".encode() * (1 + number % 9)


def append_log(mapping, count: int) -> int:
    """Append records to the log that the crash model examines; each is durable when its append returns."""
    log = AppendLog.create(mapping)
    return max(log.append(record(number)) for number in range(count))


def read_log(mapping) -> int:
    """Return how many records the log has, each as it was written; a torn one is an error of the log's own."""
    number = -1
    for number, found in enumerate(AppendLog(mapping)):
        assert found == record(number), f"record {number} is another"
    return number + 1


def make_driver() -> PmemDriver:
    """Return the driver of this machine, with the region file on the DAX file system."""
    environ = {**os.environ, "HAL_PMEM_FILES": f"{REGION_FILE}=32M" if MOUNT.is_mount() else ""}
    return PmemDriver([HostRoot(node=os.uname().nodename)], environ)


def find_regions(driver: PmemDriver) -> list:
    """Return the regions that can be leased."""
    found = driver.discover(Deadline.after(30))
    return [device for device in found.devices if device.kind == "pmem" and device.allocatable]


def kernel_regions(driver: PmemDriver) -> list:
    """Return those of libnvdimm."""
    return [device for device in find_regions(driver) if any(name.startswith("nd:") for name in device.aliases)]


def file_region(driver: PmemDriver):
    """Return the region in a file."""
    return next(device for device in find_regions(driver) if device.value("media") == "file")


def confirm(region, plan):
    """Carry a plan out."""
    return region.confirm(plan, deadline=Deadline.after(120)).wait(Deadline.after(130))


def make_room(region) -> str:
    """Destroy what the region came with, so that namespaces can be created."""
    names = []
    for namespace in region.namespaces():
        confirm(region, region.plan_destroy(namespace.name))
        names.append(namespace.name)
    return f"destroyed {names}, {region.region().available_bytes} bytes are free"


def namespace_of(region, mode: NamespaceMode):
    """Return the first namespace of a mode."""
    return next(namespace for namespace in region.namespaces() if namespace.mode is mode)


def block_of(region_name: str) -> str:
    """Return the block device of a region's fsdax namespace."""
    number = region_name.removeprefix("region")
    return next(name for name in sorted(os.listdir("/sys/class/block")) if name.startswith(f"pmem{number}"))


def run(*command: str) -> str:
    """Run a command of the system."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{command}: {done.stderr.strip()}"
    return done.stdout.strip()


def mount(block: str, *, make: bool) -> str:
    """Mount the fsdax namespace with DAX."""
    if make:
        run("mkfs.ext4", "-q", "-F", "-b", "4096", f"/dev/{block}")
    MOUNT.mkdir(parents=True, exist_ok=True)
    run("mount", "-o", "dax", f"/dev/{block}", str(MOUNT))
    return f"/dev/{block} at {MOUNT}"


def opened(driver: PmemDriver, device_id: str):
    """Open a region without a broker."""
    return driver.open(device_id, OpenGuard(), Deadline.after(30))


# --- writing


def write(driver: PmemDriver) -> None:
    regions = check("discover", lambda: [device.id for device in kernel_regions(driver)] or _none())
    if not regions:
        return
    first, last = regions[0], regions[-1]
    grant = Grant(lease="lab", fence=int(time.time()))
    check("prepare", lambda: driver.prepare(first, grant, Deadline.after(30)))
    with opened(driver, first) as region:
        check("telemetry", lambda: {name: str(told.value) for name, told in region.telemetry().items()})
        check("make room", lambda: make_room(region))
        check("create devdax", lambda: write_devdax(region))
        check("deep flush", lambda: deep_flush(region))
        check("devdax is not destroyed while mapped", lambda: refuse_destroy(region))
    check("unprepare", lambda: driver.unprepare(first, grant, Deadline.after(30)))
    with opened(driver, last) as region:
        if last != first:
            check("make room in the last region", lambda: make_room(region))
        check("create fsdax", lambda: create_fsdax(region))
        check("fsdax without a file system is durable by msync", lambda: write_block(region))
        block = block_of(region.region().name)
        check("mkfs and mount", lambda: mount(block, make=True))
        check("a mounted namespace is not mapped", lambda: refuse_mounted(region))
    driver = make_driver()
    check("file region on DAX", lambda: write_file(driver))
    check("bad blocks", lambda: break_blocks(driver, block))
    check("bad blocks are an event", lambda: watch_break(driver, block))
    check("clear poison", lambda: clear(driver))
    check("unmount", lambda: run("umount", str(MOUNT)))


def _none() -> list:
    raise AssertionError("no region of NVDIMMs: are nfit and nd_pmem loaded?")


def write_devdax(region) -> str:
    made = confirm(region, region.plan_create(NamespaceMode.DEVDAX, DEVDAX_BYTES))
    assert made in region.namespaces()
    with region.map(made.name) as mapping:
        assert mapping.persistence is Persistence.CPU_FLUSH, mapping.persistence
        tail = append_log(mapping, RECORDS)
        assert read_log(mapping) == RECORDS
        return f"{made.name} {made.uuid}, {mapping.size_bytes} bytes mapped, {mapping.persistence}, log to {tail}"


def deep_flush(region) -> str:
    domain = region.region().persistence_domain
    try:
        region.deep_flush(deadline=Deadline.after(30)).wait(Deadline.after(30))
    except Unsupported as error:
        hints = Path(f"/sys/bus/nd/devices/{region.region().name}/deep_flush").read_text().strip()
        assert domain is PersistenceDomain.NONE or hints == "0", f"domain {domain}, deep_flush {hints}"
        return error.message
    return f"done, domain {domain}"


def refuse_destroy(region) -> str:
    namespace = namespace_of(region, NamespaceMode.DEVDAX)
    with region.map(namespace.name):
        try:
            region.plan_destroy(namespace.name)
        except DeviceBusy as error:
            return error.message
    raise AssertionError("a mapped namespace could be planned away")


def create_fsdax(region) -> str:
    size = region.region().available_bytes // (16 * MIB) * (16 * MIB)
    made = confirm(region, region.plan_create(NamespaceMode.FSDAX, size))
    return f"{made.name} of {made.size_bytes} bytes at {made.offset_bytes}"


def write_block(region) -> str:
    with region.map(namespace_of(region, NamespaceMode.FSDAX).uuid) as mapping:
        assert mapping.persistence is Persistence.MSYNC, mapping.persistence
        mapping.memcpy_persist(MIB, b"by the page cache")
        assert mapping.read(MIB, 17) == b"by the page cache"
        return f"{mapping.size_bytes} bytes, {mapping.persistence}"


def refuse_mounted(region) -> str:
    try:
        region.map(namespace_of(region, NamespaceMode.FSDAX).name)
    except DeviceBusy as error:
        return str(error)
    raise AssertionError("a mounted namespace could be mapped")


def write_file(driver: PmemDriver) -> str:
    device = file_region(driver)
    assert device.value("media") == "file"
    assert device.value("persistence") == "cpu-flush", device.attributes["persistence"]
    with opened(driver, device.id) as region, region.map("namespace0.0") as mapping:
        assert mapping.persistence is Persistence.CPU_FLUSH, mapping.persistence
        append_log(mapping, RECORDS)
        mapping.memcpy_persist(BROKEN_OFFSET, b"lost" * 4096)
        domain = region.region().persistence_domain
        return f"{device.id}, {mapping.size_bytes} bytes, {mapping.persistence}, domain {domain}"


def sector_of(path: Path, offset: int) -> int:
    """Return the first sector on the device of a place in a file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for logical, physical, length in file_extents(descriptor):
            if logical <= offset < logical + length:
                return (physical + offset - logical) // 512
    finally:
        os.close(descriptor)
    raise AssertionError(f"{path} has no block at {offset}")


def break_sectors(block: str, offset: int, sectors: int) -> int:
    """Tell the kernel that some sectors under the region file are bad."""
    first = sector_of(REGION_FILE, DATA_OFFSET_BYTES + offset)
    Path(f"/sys/block/{block}/badblocks").write_text(f"{first} {sectors}\n")
    return first


def break_blocks(driver: PmemDriver, block: str) -> str:
    device = file_region(driver)
    first = break_sectors(block, BROKEN_OFFSET, 8)
    with opened(driver, device.id) as region, region.map("namespace0.0") as mapping:
        try:
            mapping.read(BROKEN_OFFSET - 8, 16)
        except UncorrectableError as error:
            said = str(error)
        else:
            raise AssertionError("a bad block was read")
        assert mapping.read(BROKEN_OFFSET - 8, 8) == bytes(8), "what lies before can be read"
        assert read_log(mapping) == RECORDS, "the log is elsewhere, and whole"
        bad = [(part.offset, part.length) for part in mapping.bad_blocks()]
        assert bad == [(BROKEN_OFFSET, 4096)], bad
        try:
            mapping.memcpy_persist(BROKEN_OFFSET, b"x")
        except UncorrectableError:
            pass
        else:
            raise AssertionError("a bad block was stored to")
    types = sorted({one.type for one in driver.sample([device.id], Deadline.after(30))})
    assert types == ["BadBlocks"], types
    return f"sector {first} of {block}: {said}"


def watch_break(driver: PmemDriver, block: str) -> str:
    """See an event for a region whose blocks go bad while somebody watches."""
    seen: list[Event] = []
    watching = driver.events(Deadline.after(60))

    def listen(events: Iterator[Event]) -> None:
        for event in events:
            seen.append(event)
            if event.type is EventType.CHANGED and "bad_blocks" in event.detail:
                return

    listener = threading.Thread(target=listen, args=(watching,), daemon=True)
    listener.start()
    place = BROKEN_OFFSET
    limit = Deadline.after(45)
    while listener.is_alive() and not limit.expired:
        place += 4096  # another one each time, until the watcher's first look lies behind us
        with opened(driver, file_region(driver).id) as region, region.map("namespace0.0") as mapping:
            mapping.memcpy_persist(place, b"soon lost")
        break_sectors(block, place, 8)
        listener.join(5)
    assert not listener.is_alive(), f"no event told of it: {seen}"
    return f"{seen[-1].subject}: {seen[-1].detail}"


def clear(driver: PmemDriver) -> str:
    device = file_region(driver)
    with opened(driver, device.id) as region, region.map("namespace0.0") as mapping:
        before = len(mapping.bad_blocks())
        for part in mapping.bad_blocks():
            mapping.clear_poison(part.offset, part.length)
            assert mapping.read(part.offset, part.length) == bytes(part.length)
        assert not mapping.bad_blocks(), mapping.bad_blocks()
        return f"{before} ranges cleared; they read as zeros"


# --- after the power was off


def verify(driver: PmemDriver) -> None:
    regions = check("discover", lambda: [device.id for device in kernel_regions(driver)] or _none())
    if not regions:
        return
    with opened(driver, regions[0]) as region:
        check("devdax log after power-off", lambda: log_of(region, namespace_of(region, NamespaceMode.DEVDAX).name))
    with opened(driver, regions[-1]) as region:
        check("mount", lambda: mount(block_of(region.region().name), make=False))
    driver = make_driver()

    def check_file() -> str:
        device = file_region(driver)
        assert device.value("persistence") == "cpu-flush", device.attributes["persistence"]
        with opened(driver, device.id) as region:
            return f"{device.id}: {log_of(region, 'namespace0.0')}"

    check("file log after power-off", check_file)
    check("scrub", lambda: scrub(driver))
    check("unmount", lambda: run("umount", str(MOUNT)))


def log_of(region, name: str) -> str:
    with region.map(name, read_only=True) as mapping:
        count = read_log(mapping)
        assert count == RECORDS, f"{count} of {RECORDS} records"
        return f"{count} records of {name} are there"


def scrub(driver: PmemDriver) -> str:
    device = file_region(driver)
    driver.scrub(device.id).wait(Deadline.after(60))
    with opened(driver, device.id) as region, region.map("namespace0.0") as mapping:
        assert mapping.read(0, 4096) == bytes(4096)
        return "the log is gone"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phase", choices=("write", "verify"), required=True)
    phase = parser.parse_args().phase
    try:
        (write if phase == "write" else verify)(make_driver())
    except (HalError, StopIteration) as error:
        print(json.dumps({"check": "run", "ok": False, "detail": f"{type(error).__name__}: {error}"}), flush=True)
        return 1
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
