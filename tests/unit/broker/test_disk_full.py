"""A disk that is really full: claims are refused cleanly, leases still end, and nothing acknowledged is lost.

The disk is a small file system in memory, mounted in a namespace of the test's own; as a program of its own this file
is what runs there: ``python -m tests.unit.broker.test_disk_full STORY FOLDER``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hal.broker import command as c
from hal.broker.journal import reserve
from hal.broker.journal.audit import AuditEntry
from hal.broker.journal.sqlite import FILE, SqliteStore
from hal.broker.journal.store import JournalFull, load_state
from hal.broker.ledger import Ledger
from hal.broker.record import BootSeen, JournalBegun, LeaseEnded, LeaseReleasing, LeaseRenewed
from tests.unit.broker.checker import check
from tests.unit.broker.fake import ManualClock
from tests.unit.broker.world import claim, server

ROOT = Path(__file__).parents[3]


def on_a_disk_of(mebibytes, story, tmp_path):
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-Urm", "true"], check=False).returncode:
        pytest.skip("no user namespace can be made here, and so no small disk: unshare -Urm true fails")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size={mebibytes}m none "$1" && exec "$0" -m tests.unit.broker.test_disk_full "$2" "$1"'
    words = ["unshare", "-Urm", "sh", "-c", mount, sys.executable, str(disk), story]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def fill(folder, but=128 << 10):
    """Take all that is free but a little, and return what can be taken away again."""
    ballast = folder / "somebody else's"
    file = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    try:
        while os.write(file, bytes(4096)):
            pass
    except OSError:
        pass
    finally:
        os.ftruncate(file, max(0, os.fstat(file).st_size - but))
        os.close(file)
    return ballast


def begun(folder):
    store = SqliteStore(folder / "state")
    ledger = Ledger(store, ManualClock())
    ledger.execute(c.Begin(boot_id="b"))
    ledger.execute(c.Observe(devices=tuple(device for n in range(20) for device in server(f"n{n}"))))
    assert (folder / "state" / reserve.FILE).stat().st_size == reserve.BYTES
    return ledger


def claim_until_full(ledger, name="c"):
    granted = {}

    def go_on():
        for number in range(160):
            answer = ledger.execute(c.ClaimDevices(claim=claim(f"{name}{number}", where=f"name != '{'x' * 900}'")))
            assert isinstance(answer, c.Granted), answer
            granted[answer.lease.id] = answer.lease

    with pytest.raises(JournalFull, match="make room"):
        go_on()
    return granted


def claims_and_releases(folder):
    """Claims meet the end of the disk; every lease can be ended all the same; with room again all goes on."""
    ledger = begun(folder)
    for number in range(5):
        ledger.execute(c.ClaimDevices(claim=claim(f"before{number}")))
    ballast = fill(folder)
    granted = claim_until_full(ledger)
    assert granted
    state = ledger.state.snapshot()
    assert {lease.id for lease in state.leases} == {*granted, *(f"before{n}" for n in range(5))}
    ledger.execute(c.Renew(lease="before0"))
    for lease in list(ledger.state.leases.values()):
        ledger.execute(c.Release(lease=lease.id))
        ledger.execute(c.ProveReleased(lease=lease.id, fence=lease.fence))
    assert not ledger.state.leases
    early = claim_until_full(ledger, "early")
    state = ledger.state.snapshot()
    ledger.store.close()
    again = SqliteStore(folder / "state")  # it opens on the full disk, too
    assert load_state(again).snapshot() == state
    ledger = Ledger(again, ManualClock())
    early |= claim_until_full(ledger, "later")
    for lease in early.values():
        ledger.execute(c.Release(lease=lease.id))
        ledger.execute(c.ProveReleased(lease=lease.id, fence=lease.fence))
    ballast.unlink()
    assert isinstance(ledger.execute(c.ClaimDevices(claim=claim("after"))), c.Granted)
    assert (folder / "state" / reserve.FILE).stat().st_blocks * 512 >= reserve.BYTES, "kept again for the next time"
    again.save_snapshot(ledger.state.snapshot())
    assert again.verify_audit().ok
    again.close()
    live, fenced = check(folder / "state" / FILE)
    assert (sorted(live), fenced) == (["after"], set())


def killed_when_full(folder):
    """The process that met the end of the disk is killed: what it had acknowledged is there, and can be ended."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        ledger = begun(folder)
        fill(folder)
        names = " ".join(claim_until_full(ledger))
        os.write(told, names.encode())
        os.kill(os.getpid(), 9)
    os.close(told)
    names = os.read(ready, 65536).decode().split()
    os.waitpid(child, 0)
    assert names
    ledger = Ledger(SqliteStore(folder / "state"), ManualClock())
    assert sorted(ledger.state.leases) == sorted(names)
    for lease in list(ledger.state.leases.values()):
        ledger.execute(c.Release(lease=lease.id))
    ledger.store.close()
    live, _ = check(folder / "state" / FILE)
    assert {entry[2] for entry in live.values()} == {"releasing"}


def long_misery(folder):
    """Thousands of renewals and releases while the disk stays full: renewals leave half of the reserve to releases."""
    store = SqliteStore(folder / "state")
    store.append([JournalBegun(at=0.0, fence=1), BootSeen(at=0.0, boot_id="b")], 0)
    assert (folder / "state" / reserve.FILE).stat().st_size == reserve.BYTES
    fill(folder)
    renewals = [LeaseRenewed(at=1.0, lease="x" * 1000, expires_at=2.0)] * 8
    renewed = 0
    try:
        while renewed < 1_000_000:
            store.append(renewals, 2 + renewed)
            renewed += len(renewals)
    except JournalFull:
        pass
    left = (folder / "state" / reserve.FILE).stat().st_size
    assert left == reserve.BYTES // 2, left
    with pytest.raises(JournalFull):
        store.append([JournalBegun(at=0.0, fence=1)], store.head())
    ended = 0
    entry = AuditEntry(at=1.0, actor="uid 1", tenant="t", verb="release", subject="a")
    try:
        while ended < 1500:
            records = [
                LeaseReleasing(at=1.0, lease="a", why="x"),
                LeaseEnded(at=1.0, lease="a", freed=("d",), proof="p"),
            ]
            store.append(records, 2 + renewed + 2 * ended, [entry])
            ended += 1
    except JournalFull:
        pass
    head = store.head()
    store.close()
    again = SqliteStore(folder / "state")
    assert again.head() == head == sum(1 for _ in again.replay())
    assert again.verify_audit().ok
    again.close()
    print(renewed, ended)


STORIES = {story.__name__: story for story in (claims_and_releases, killed_when_full, long_misery)}


@pytest.mark.parametrize("story", ["claims_and_releases", "killed_when_full"])
def test_on_a_full_disk_leases_still_end_and_nothing_is_lost(tmp_path, story):
    on_a_disk_of(12, story, tmp_path)


def test_thousands_of_leases_end_on_a_disk_that_stays_full(tmp_path):
    renewals, releases = map(int, on_a_disk_of(12, "long_misery", tmp_path).split())
    assert renewals > 500
    assert releases == 1500


def test_a_disk_too_small_for_the_reserve_refuses_claims_and_still_opens(tmp_path):
    on_a_disk_of(3, "without_a_reserve", tmp_path)


def without_a_reserve(folder):
    store = SqliteStore(folder)
    with pytest.raises(JournalFull, match="kept for ending"):
        store.append([JournalBegun(at=0.0, fence=1)], 0)
    assert store.append([BootSeen(at=0.0, boot_id="b")], 0) == 1
    store.close()


STORIES["without_a_reserve"] = without_a_reserve

if __name__ == "__main__":
    STORIES[sys.argv[1]](Path(sys.argv[2]))
