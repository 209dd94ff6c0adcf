"""Two processes, each with a lease on a software NIC: one-sided data, atomics, and the death of one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hal.api.opening import open_broker
from hal.errors import FlushedError, LeaseEnded, RemoteAccessError, TransferError
from hal.interfaces.deadline import Deadline
from hal.interfaces.rnic import ALL_ACCESS, ConnectionState

HOLDER = Path(__file__).with_name("rdma_holder.py")
WITHIN = 20.0


class Holder:
    """The other process, with a lease and a NIC of its own."""

    def __init__(self, ticket):
        self._process = subprocess.Popen(
            [sys.executable, HOLDER, ticket], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        told = self.hear()
        self.address, self.rkey = told["address"], bytes.fromhex(told["rkey"])
        self.endpoint = bytes.fromhex(told["endpoint"])

    def connect(self, endpoint):
        self.ask("connect", endpoint=endpoint.address.hex())
        return endpoint.connect(self.endpoint)

    def tell(self, what, **words):
        self._process.stdin.write(json.dumps({"do": what, **words}) + "\n")
        self._process.stdin.flush()

    def hear(self):
        return json.loads(self._process.stdout.readline())

    def ask(self, what, **words):
        self.tell(what, **words)
        return self.hear()

    def read(self, at, length):
        return bytes.fromhex(self.ask("read", at=at, length=length)["data"])

    def send_signal(self, number):
        self._process.send_signal(number)

    def stop(self):
        """Let the process stand still, and return once all of its threads do."""
        self.send_signal(signal.SIGSTOP)
        until = time.monotonic() + WITHIN
        tasks = Path("/proc", str(self._process.pid), "task")
        while any((task / "stat").read_text().rpartition(")")[2].split()[0] != "T" for task in tasks.iterdir()):
            assert time.monotonic() < until
            time.sleep(0.001)

    def kill(self):
        self._process.kill()
        self._process.wait()

    def close(self):
        self._process.stdin.close()
        try:
            self._process.wait(10)
        finally:
            self.kill()
            self._process.stdout.close()


@pytest.fixture(params=["shm", "tcp"])
def broker(request, tmp_path, monkeypatch):
    monkeypatch.setenv("HAL_RDMA_SOFTWARE", f"here={request.param};there={request.param}")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("HAL_MACHINE", raising=False)
    with open_broker(os.environ, tmp_path / "state") as broker:
        yield broker


@pytest.fixture
def nic(broker):
    with broker.claim("rnic", where="software", id="ours") as lease:
        yield lease.open()


@pytest.fixture
def holder(broker, nic):
    lease = broker.claim("rnic", where="software", id="theirs")
    process = Holder(lease.ticket())
    yield process
    process.close()
    lease.release()


def wait(operation):
    return operation.wait(Deadline.after(WITHIN))


def test_data_goes_one_sided_between_the_holders_of_two_leases(nic, holder):
    with nic.endpoint() as endpoint:
        connection = holder.connect(endpoint)
        payload = bytes(range(256)) * 8
        wait(connection.put(payload, holder.address, holder.rkey))
        wait(connection.flush())
        assert holder.read(0, len(payload)) == payload
        into = bytearray(len(payload))
        wait(connection.get(into, holder.address, holder.rkey))
        assert into == payload


def test_the_lease_ends_the_connection_and_nothing_more_is_written(broker, nic, holder):
    with nic.endpoint() as endpoint:
        connection = holder.connect(endpoint)
        wait(connection.put(b"while it lasts", holder.address, holder.rkey))
        wait(connection.flush())
        broker.release("ours")
        with pytest.raises(LeaseEnded):
            connection.put(b"after its end!", holder.address, holder.rkey)
        assert holder.read(0, 14) == b"while it lasts"


def test_fetch_adds_of_two_processes_hand_out_every_number_once(nic, holder):
    rounds = 500
    with nic.register(64, ALL_ACCESS) as region, nic.endpoint() as endpoint, nic.endpoint() as loop:
        holder.connect(endpoint)
        with nic.endpoint() as back:
            here = loop.connect(back.address)
            back.connect(loop.address)
            holder.tell("count", address=region.address, rkey=region.rkey.hex(), rounds=rounds)
            ours = [wait(here.fetch_add(region.address, region.rkey, 1)) for _ in range(rounds)]
            theirs = holder.hear()["found"]
        assert sorted(ours + theirs) == list(range(2 * rounds)), "the same as in any sequential order"
        assert ours == sorted(ours)
        assert theirs == sorted(theirs)
        assert region.view[:8].cast("Q")[0] == 2 * rounds


def test_compare_and_swaps_of_two_processes_win_every_turn_once(nic, holder):
    rounds = 200
    with nic.register(64, ALL_ACCESS) as region, nic.endpoint() as endpoint, nic.endpoint() as loop:
        holder.connect(endpoint)
        with nic.endpoint() as back:
            here = loop.connect(back.address)
            back.connect(loop.address)
            holder.tell("append", address=region.address, rkey=region.rkey.hex(), rounds=rounds)
            ours, expected = [], 0
            for _ in range(rounds):
                while (
                    found := wait(here.compare_and_swap(region.address, region.rkey, expected, expected + 1))
                ) != expected:
                    expected = found
                ours.append(expected)
                expected += 1
            theirs = holder.hear()["taken"]
        assert sorted(ours + theirs) == list(range(2 * rounds))


VERBS = {
    "put": lambda connection, holder: connection.put(bytes(8), holder.address, holder.rkey),
    "get": lambda connection, holder: connection.get(bytearray(8), holder.address, holder.rkey),
    "fetch_add": lambda connection, holder: connection.fetch_add(holder.address, holder.rkey, 1),
    "compare_and_swap": lambda connection, holder: connection.compare_and_swap(holder.address, holder.rkey, 0, 1),
    "send": lambda connection, holder: connection.send(b"hello?"),
    "recv": lambda connection, holder: connection.recv(bytearray(8)),
    "flush": lambda connection, holder: connection.flush(),
}


def insist(post, within):
    """Post until it fails: what is mapped here works until the death has been noticed."""
    while True:
        post().wait(within)


def test_a_killed_holder_is_a_typed_error_for_every_verb(nic, holder):
    connections = {}
    for verb in VERBS:
        endpoint = nic.endpoint(rnr_timeout_seconds=30)
        connections[verb] = endpoint.connect(
            bytes.fromhex(holder.ask("join", endpoint=endpoint.address.hex())["endpoint"])
        )
        wait(connections[verb].fetch_add(holder.address, holder.rkey, 1))
    holder.send_signal(signal.SIGKILL)
    start, within = time.monotonic(), Deadline.after(1)
    for verb, connection in connections.items():
        with pytest.raises(TransferError):
            insist(lambda verb=verb, connection=connection: VERBS[verb](connection, holder), within)
        print(f"{verb}: {1e3 * (time.monotonic() - start):.1f} ms after the kill")
        assert connection.state is ConnectionState.ERROR
        with pytest.raises(FlushedError):
            wait(connection.flush())


def test_a_holder_that_stands_still_is_cut_off_when_its_key_must_die(nic, holder):
    buffer = bytearray(64)
    with nic.endpoint() as endpoint:
        connection = holder.connect(endpoint)
        region = nic.register(buffer, ALL_ACCESS)
        holder.ask("count", address=region.address + -region.address % 8, rkey=region.rkey.hex(), rounds=1)
        holder.stop()
        try:
            region.close()
            assert connection.state is not ConnectionState.RTS
        finally:
            holder.send_signal(signal.SIGCONT)
        buffer.extend(b"nobody holds it any more")


def test_the_key_of_a_holder_that_was_killed_is_stale_for_its_successor(broker, nic, holder):
    stale = holder.rkey
    holder.kill()
    broker.release("theirs")
    successor = Holder(broker.claim("rnic", where="software", id="next").ticket())
    try:
        with nic.endpoint() as endpoint:
            connection = successor.connect(endpoint)
            with pytest.raises(RemoteAccessError):
                wait(connection.put(b"stale", successor.address, stale))
            assert successor.read(0, 5) == bytes(5)
    finally:
        successor.close()
        broker.release("next")


FORK = """
import os, sys
from hal.drivers.contract import HostRoot
from hal.drivers.guard import OpenGuard
from hal.errors import InvalidArgument
from hal.interfaces.deadline import Deadline
from hal.interfaces.rnic import ALL_ACCESS
from hal.testing.kinds.rnic_bench import connect
from hal_rdma.driver import RdmaDriver
driver = RdmaDriver((HostRoot(node="here"),))
nic = driver.open(driver.discover(Deadline.after(10)).devices[0].id, OpenGuard(), Deadline.after(10))
near, far = connect(nic, nic)
region = nic.register(64, ALL_ACCESS)
near.put(b"parent", region.address, region.rkey).wait(Deadline.after(10))
near.flush().wait(Deadline.after(10))
child = os.fork()
if child == 0:
    refused = 0
    for verb in (
        lambda: near.put(b"child!", region.address, region.rkey),
        lambda: near.get(bytearray(8), region.address, region.rkey),
        lambda: near.fetch_add(region.address + 8, region.rkey, 1),
        lambda: near.send(b"x"),
        lambda: near.recv(bytearray(8)),
        lambda: near.fence(),
        lambda: near.flush(),
    ):
        try:
            verb()
        except InvalidArgument as error:
            refused += "forked" in str(error)
    near.close()
    region.close()
    nic.close()
    os._exit(refused)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
near.close(); far.close()
print(bytes(region.view[:6]).decode())
nic.close()
"""


def test_a_forked_child_is_refused_every_verb_and_takes_nothing_from_its_parent(tmp_path):
    environ = {**os.environ, "HAL_RDMA_SOFTWARE": "a=shm", "XDG_RUNTIME_DIR": str(tmp_path)}
    program = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK]
    done = subprocess.run(program, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["7", "parent"]
