"""A server over a broker in memory, for tests of the socket."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx

from hal.api.client import Client
from hal.api.server.config import Config, Limits
from hal.api.server.serve import Service
from hal.api.tokens import make_key, make_token, read_key
from hal.interfaces.deadline import Deadline
from hal.model.claim import Claim, Request
from hal.model.kind import Kind
from tests.unit.fake_broker import FakeBroker


def service(broker, socket: Path, config: Config | None = None) -> Service:
    return Service(
        broker,
        config or Config(tick_seconds=0.2),
        socket,
        maintain=broker.maintain,
        look=lambda: None,
        head=lambda: broker.status().revision,
        devices=lambda: broker.all,
    )


@contextmanager
def served(broker, socket: Path, config: Config | None = None):
    """A server in a thread of this process; gives its service."""
    made = service(broker, socket, config)
    ready = threading.Event()
    failed: list[BaseException] = []

    def run():
        try:
            made.run(lambda addresses: ready.set())
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(20)
    if failed:
        raise failed[0]
    try:
        yield made
    finally:
        made.stop()
        thread.join(20)
        assert not thread.is_alive()


def until(condition, seconds=10.0):
    """Poll a condition until it holds; fail after a deadline."""
    deadline = Deadline.after(seconds)
    while True:
        found = condition()
        if found:
            return found
        assert not deadline.expired, "it never came true"
        time.sleep(0.005)


def wanted(id, count=1, **fields):
    return Claim(id=id, requests=(Request(kind=Kind.GPU, count=count),), **fields)


class World:
    """A server with a token key, and clients on anybody's account."""

    def __init__(self, folder, **limits):
        self.key_file = folder / "key"
        make_key(self.key_file)
        self.key = read_key(self.key_file)
        self.broker = FakeBroker(folder)
        self.socket = folder / "hal.sock"
        self.config = Config(token_key=str(self.key_file), tick_seconds=0.2, limits=Limits(**limits))
        self.clients = []

    def token(self, tenant, **words):
        return make_token(self.key, tenant, 600, **words)

    def client(self, tenant=None, **words):
        token = None if tenant is None else self.token(tenant, **words)
        made = Client(self.socket, token=token, timeout_seconds=20)
        self.clients.append(made)
        return made

    def http(self):
        made = httpx.Client(base_url="http://hal", transport=httpx.HTTPTransport(uds=str(self.socket)), timeout=20)
        self.clients.append(made)
        return made

    def __enter__(self):
        self._served = served(self.broker, self.socket, self.config)
        self.service = self._served.__enter__()
        return self

    def __exit__(self, *_):
        for made in self.clients:
            made.close()
        self._served.__exit__(None, None, None)
