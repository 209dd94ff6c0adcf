"""What mock RDMA NICs share between processes: sessions, queue pair pages, region pages, counters. All are files in
the machine's state folder; a session's lock dies with its process, and whoever comes next sweeps up after it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from hal_mocks.base import write_whole
from hal_mocks.machine import Machine

PAGE_BYTES = 4096
RESET, INIT, RTR, RTS, ERROR = 0, 1, 2, 3, 6
"""Queue pair states by the numbers of ``ibv_qp_state``."""

# Words of a queue pair's page. Each has one writer, but for the state: the owner and the peer may both break it.
STATE, POSTED, ARRIVED, OWN_TAG, PEER_TAG, OUT_BYTES, OUT_PACKETS, IN_BYTES, IN_PACKETS, SYMBOLS = range(10)
_ENDS_AT = 1024

# Words of a region's page. No access means that it is deregistered.
ACCESS, ADDRESS, LENGTH, USER_MEMORY = range(4)

QUEUE_DEPTH = 128
SLOT_BYTES = PAGE_BYTES
SLOT_HEAD_BYTES = 16
INLINE_BYTES = SLOT_BYTES - SLOT_HEAD_BYTES


class SharedFile:
    """A file mapped as a whole; ``words`` are its first page as 64-bit words, ``body`` is the rest.

    The map lives as long as somebody holds a view of it; closing gives back the descriptor only.
    """

    __slots__ = ("body", "descriptor", "path", "words")

    def __init__(self, path: Path, create_bytes: int | None = None) -> None:
        flags = os.O_RDWR | os.O_CLOEXEC | (0 if create_bytes is None else os.O_CREAT | os.O_EXCL)
        self.path = path
        self.descriptor = os.open(path, flags, 0o600)
        try:
            if create_bytes is not None:
                os.ftruncate(self.descriptor, PAGE_BYTES + create_bytes)
            whole = memoryview(mmap.mmap(self.descriptor, 0))
        except BaseException:
            os.close(self.descriptor)
            raise
        self.words = whole[:PAGE_BYTES].cast("Q")
        self.body = whole[PAGE_BYTES:]

    def lock(self) -> None:
        """Keep out every other opener of the file, in this process or another; the kernel frees it if we die."""
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)

    def unlock(self) -> None:
        """Let the others in."""
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give back the descriptor. Idempotent."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __del__(self) -> None:
        if getattr(self, "descriptor", -1) >= 0:
            self.close()


class Session:
    """One opened handle's folder, alive as long as its process holds the lock in it."""

    def __init__(self, machine: Machine, device_id: str) -> None:
        self.machine = machine
        self.device_id = device_id
        self.name = secrets.token_hex(8)
        self.folder = sessions_folder(machine, device_id) / self.name
        with machine.state.locked("rnic-sessions.lock"):
            _sweep(machine, device_id)
            self.folder.mkdir(parents=True)
            self._lock = os.open(self.folder / "alive", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._queues = 0

    def create_queue(self) -> tuple[int, SharedFile]:
        """Return the number and the page of a new queue pair in INIT."""
        self._queues += 1
        page = SharedFile(queue_path(self.folder, self._queues), QUEUE_DEPTH * SLOT_BYTES)
        page.words[OWN_TAG] = secrets.randbits(64) or 1
        page.words[STATE] = INIT
        return self._queues, page

    def retire_queue(self, page: SharedFile) -> None:
        """Count what the queue pair has done and remove its page."""
        with self.machine.state.locked("rnic-sessions.lock"):
            if page.path.exists():
                _fold(self.machine, page.path)
                page.path.unlink()

    def close(self) -> None:
        """Remove the folder. Idempotent."""
        if self._lock < 0:
            return
        with self.machine.state.locked("rnic-sessions.lock"):
            _bury(self.machine, self.folder)
            self.abandon()

    def abandon(self) -> None:
        """Let the folder's lock go and leave the folder to the next sweep. Idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __del__(self) -> None:
        if getattr(self, "_lock", -1) >= 0:
            self.abandon()


def sessions_folder(machine: Machine, device_id: str) -> Path:
    """Return where the sessions of a NIC live."""
    return machine.state.device(device_id) / "sessions"


def queue_path(session: Path, number: int) -> Path:
    """Return the path of a queue pair's page."""
    return session / f"qp-{number}"


def region_path(session: Path, rkey: bytes) -> Path:
    """Return the path of a region's page; the key is the name."""
    return session / f"mr-{rkey.hex()}"


def sweep(machine: Machine, device_id: str) -> int:
    """Remove what dead processes left of a NIC; returns how many sessions."""
    with machine.state.locked("rnic-sessions.lock"):
        return _sweep(machine, device_id)


def _sweep(machine: Machine, device_id: str) -> int:
    swept = 0
    for folder in _folders(machine, device_id):
        try:
            descriptor = os.open(folder / "alive", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            _bury(machine, folder)
            swept += 1
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            _bury(machine, folder)
            swept += 1
        finally:
            os.close(descriptor)
    return swept


def _bury(machine: Machine, folder: Path) -> None:
    for path in _queue_pages(folder):
        _fold(machine, path)
    disable(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _folders(machine: Machine, device_id: str) -> Iterator[Path]:
    folder = sessions_folder(machine, device_id)
    return iter(sorted(folder.iterdir())) if folder.exists() else iter(())


def disable(session: Path) -> None:
    """Break every queue pair and deregister every region of a session, whichever process it belongs to."""
    pages = [(path, ERROR) for path in _queue_pages(session)] + [(path, 0) for path in session.glob("mr-*")]
    for path, word in pages:
        with path.open("r+b") as page:
            page.write(word.to_bytes(8, "little"))


def disable_all(machine: Machine, device_id: str) -> None:
    """Take the NIC away from everybody who has it open."""
    with machine.state.locked("rnic-sessions.lock"):
        for folder in _folders(machine, device_id):
            disable(folder)


def port_key(device_id: str, port: int) -> str:
    """Return the name under which a port's counters are kept."""
    return f"{device_id}/{port}"


def name_ends(page: SharedFile, own_key: str, peer_key: str) -> None:
    """Write into a queue pair's page which port it sends from and which it talks to."""
    names = f"{own_key} {peer_key}".encode()
    page.words.cast("B")[_ENDS_AT : _ENDS_AT + len(names) + 1] = names + b"\0"


def tally(machine: Machine, key: str, **counts: int) -> None:
    """Add to a port's counters for good. For rare events: data is counted in the queue pairs' pages."""
    with machine.state.locked("rnic.lock"):
        totals = _totals(machine, key)
        for name, count in counts.items():
            totals[name] = totals.get(name, 0) + count
        write_whole(_counters_path(machine, key), msgspec.json.encode(totals))


def zero_counters(machine: Machine, key: str, device_ids: Iterable[str]) -> None:
    """Let a port's counters start again, as after a reset; what live queue pairs have counted so far is set off."""
    with machine.state.locked("rnic-sessions.lock"):
        live = _live(machine, key, device_ids)
        with machine.state.locked("rnic.lock"):
            offsets = {name: -count for name, count in live.items() if count}
            write_whole(_counters_path(machine, key), msgspec.json.encode(offsets))


def totals_of(machine: Machine, key: str, device_ids: Iterable[str]) -> dict[str, int]:
    """Return a port's counters: those kept for good, and those of live queue pairs, its own and its peers'.

    ``device_ids`` are the NICs whose queue pairs may talk to the port.
    """
    with machine.state.locked("rnic-sessions.lock"):
        live, kept = _live(machine, key, device_ids), _totals(machine, key)
    return {name: live.get(name, 0) + kept.get(name, 0) for name in {**live, **kept}}


def _live(machine: Machine, key: str, device_ids: Iterable[str]) -> dict[str, int]:
    live: dict[str, int] = {}
    for device_id in device_ids:
        for folder in _folders(machine, device_id):
            for path in _queue_pages(folder):
                for name, counts in _counts(path):
                    if name == key:
                        for field, count in counts.items():
                            live[field] = live.get(field, 0) + count
    return live


def _counters_path(machine: Machine, key: str) -> Path:
    device_id, _, port = key.rpartition("/")
    return machine.state.device(device_id) / f"counters-{port}.json"


def _totals(machine: Machine, key: str) -> dict[str, int]:
    path = _counters_path(machine, key)
    return msgspec.json.decode(path.read_bytes(), type=dict[str, int]) if path.exists() else {}


def _queue_pages(session: Path) -> Iterator[Path]:
    return (path for path in session.glob("qp-*") if not path.suffix)


def _fold(machine: Machine, path: Path) -> None:
    for key, counts in _counts(path):
        tally(machine, key, **{field: count for field, count in counts.items() if count})


def _counts(path: Path) -> list[tuple[str, dict[str, int]]]:
    """What one queue pair has sent and fetched, as its own port and its peer's see it."""
    with path.open("rb") as page:
        head = page.read(PAGE_BYTES)
    names = head[_ENDS_AT:].partition(b"\0")[0].decode()
    if not names:
        return []
    own, peer = names.split(" ")
    words = memoryview(head).cast("Q")
    return [
        (
            own,
            {
                "port_xmit_data_bytes": words[OUT_BYTES],
                "port_xmit_packets": words[OUT_PACKETS],
                "port_rcv_data_bytes": words[IN_BYTES],
                "port_rcv_packets": words[IN_PACKETS],
                "symbol_error": words[SYMBOLS],
            },
        ),
        (
            peer,
            {
                "port_xmit_data_bytes": words[IN_BYTES],
                "port_xmit_packets": words[IN_PACKETS],
                "port_rcv_data_bytes": words[OUT_BYTES],
                "port_rcv_packets": words[OUT_PACKETS],
            },
        ),
    ]
