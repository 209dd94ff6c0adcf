"""The clients: one surface with the broker in this process, the same errors, and no verb done twice or lost."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time

import msgspec
import pytest

from hal import errors
from hal.api import aio, http1, wire
from hal.api.client import Client, unreachable
from hal.api.keep import Keeping
from hal.api.local import LocalBroker
from hal.api.surface import Broker
from hal.api.wire import Compacted, Unreachable, error_of, problem_of
from hal.errors import DeadlineExceeded, HalError, LeaseEnded
from hal.interfaces.deadline import Deadline
from hal.model.claim import Claim, Request
from hal.model.event import EventType
from hal.model.kind import Kind
from tests.unit.fake_broker import FakeBroker
from tests.unit.server_world import served, until

VERBS = sorted(name for name, verb in vars(Broker).items() if inspect.isfunction(verb) and not name.startswith("_"))


def wanted(id, count=1, **fields):
    return Claim(id=id, requests=(Request(kind=Kind.GPU, count=count),), **fields)


def _parameters(kind, verb):
    found = inspect.signature(getattr(kind, verb)).parameters.values()
    return [(one.name, one.kind, one.default) for one in found]


@pytest.mark.parametrize("verb", VERBS)
def test_a_client_has_every_verb_of_a_broker_with_the_same_signature(verb):
    asked = _parameters(Broker, verb)
    assert _parameters(Client, verb) == asked
    assert _parameters(aio.Client, verb) == asked
    ours = inspect.signature(getattr(LocalBroker, verb)).parameters
    for name, kind, default in asked:
        if kind is inspect.Parameter.VAR_KEYWORD:
            continue
        assert name in ours, f"{verb} in this process lacks {name}"
        assert ours[name].default == default
    more = [one for name, one in ours.items() if name not in {name for name, _, _ in asked}]
    assert all(one.default is not inspect.Parameter.empty or one.kind is one.VAR_KEYWORD for one in more)
    assert inspect.iscoroutinefunction(getattr(aio.Client, verb)) or verb in ("events", "watch")


def _every(kind):
    yield kind
    for below in kind.__subclasses__():
        yield from _every(below)


@pytest.mark.parametrize(
    "kind", sorted(_every(HalError), key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__
)
def test_an_error_crosses_the_socket_as_what_it_is(kind):
    error = kind(3, 7) if kind is Compacted else kind("it broke", device="gpu-0", during="renew", hint="another one")
    if isinstance(error, errors.HardwareFault):
        error.code = 79
    problem = msgspec.json.decode(msgspec.json.encode(problem_of(error)), type=wire.Problem)
    back = error_of(problem)
    assert 400 <= problem.status < 600
    public = getattr(errors, kind.__name__, getattr(wire, kind.__name__, None)) is kind
    assert type(back) is kind if public else isinstance(error, type(back))
    assert (str(back), back.device, back.during, back.hint) == (str(error), error.device, error.during, error.hint)
    assert getattr(back, "code", None) == getattr(error, "code", None)
    assert getattr(back, "oldest", None) == getattr(error, "oldest", None)


def test_an_answer_that_is_not_ours_is_said_to_be_so(tmp_path):
    async def nginx(scope, receive, send):
        await send({"type": "http.response.start", "status": 502, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body", "body": b"<h1>Bad Gateway"})

    with served(FakeBroker(tmp_path), tmp_path / "s") as service, Client(tmp_path / "s") as client:
        service.app._fixed.clear()
        service.app._router.default = service.app._router.app = nginx
        service.app._router.routes.clear()
        with pytest.raises(errors.BrokerError, match=r"502.*Bad Gateway.*is it hal"):
            client.list()


class Killing:
    """Lets the broker do its part, and then cuts the connection without a word, so many times."""

    def __init__(self, app, times):
        self.app = app
        self.left = times

    async def __call__(self, scope, receive, send):
        if self.left <= 0:
            await self.app(scope, receive, send)
            return
        self.left -= 1

        async def swallow(message):
            return None

        await self.app(scope, receive, swallow)
        send.__self__.transport.abort()


def test_a_verb_whose_answer_was_lost_is_asked_again_and_done_once(tmp_path, caplog):
    broker = FakeBroker(tmp_path)
    with served(broker, tmp_path / "s") as service, Client(tmp_path / "s") as client:
        config = service._server.config
        plain = config.loaded_app
        for cut in (lambda: client.claim("gpu", id="a"), lambda: client.renew("a", 77), lambda: client.release("a")):
            config.loaded_app = Killing(plain, 2)
            cut()
        config.loaded_app = plain
    kinds = [event.type for _, event in broker.history]
    assert kinds.count(EventType.GRANTED) == kinds.count(EventType.RELEASED) == 1


def test_nobody_there_is_said_soon(tmp_path):
    with Client(tmp_path / "nobody") as client, pytest.raises(Unreachable, match="no server answers"):
        client.list()


def test_an_answer_that_does_not_come_is_not_waited_for_forever(tmp_path):
    broker = FakeBroker(tmp_path)
    with served(broker, tmp_path / "s"), Client(tmp_path / "s", timeout_seconds=0.3) as client:
        broker.slow = 1.0
        with pytest.raises(DeadlineExceeded, match="outcome is unknown"):
            client.submit([wanted("a")])
        with Client(tmp_path / "s") as patient:
            until(lambda: patient.list())


def test_a_stream_goes_on_where_it_was_when_the_server_comes_back(tmp_path):
    broker = FakeBroker(tmp_path)
    seen: list[str] = []
    with Client(tmp_path / "s") as client:
        with served(broker, tmp_path / "s"):
            thread = threading.Thread(target=lambda: _until_last(client, seen))
            thread.start()
            broker.submit([wanted("a")])
            until(lambda: "a" in seen)
        broker.submit([wanted("b")])
        with served(broker, tmp_path / "s"):
            broker.submit([wanted("last")])
            thread.join(20)
    granted = [event.subject for _, event in broker.history if event.type is EventType.GRANTED]
    assert granted == ["a", "b", "last"]
    assert seen == [event.subject for _, event in broker.history][: len(seen)]


def _until_last(client, seen):
    for event in client.watch(0, Deadline.after(20)):
        seen.append(event.subject)
        if event.subject == "last":
            return


def test_a_keeper_renews_and_tells_its_holder_to_leave(tmp_path):
    broker = FakeBroker(tmp_path)
    told = []
    with served(broker, tmp_path / "s"), Client(tmp_path / "s") as client:
        held = client.claim("gpu", id="a", ttl_seconds=1.0)
        with Keeping(held, client, told.append) as keeping:
            until(lambda: any(event.type is EventType.RENEWED for _, event in broker.history))
            begun = held.lease.granted_at
            until(lambda: time.time() > begun + 1.5)
            assert held.lease.expires_at > begun + 1.5
            client.drain(held.devices[0].id, "new firmware", grace_seconds=7)
            until(lambda: told)
            assert (told[0].notice, told[0].state) == ("new firmware", "draining")
            assert not keeping.over
            client.release("a")
            until(lambda: keeping.over)
        assert told[-1].state == "ended"
        assert len(told) == 2, "once for the notice, once for the end"


def test_a_lease_is_given_back_at_the_end_of_its_block(tmp_path):
    broker = FakeBroker(tmp_path)
    with served(broker, tmp_path / "s"), Client(tmp_path / "s") as client:
        with client.claim("gpu", id="a") as held:
            assert client.get("a").ticket() == held.ticket()
        assert client.list() == ()
        with pytest.raises(LeaseEnded):
            client.get("a")


def test_asyncio_raises_the_same(tmp_path):
    async def main():
        async with aio.Client(tmp_path / "nobody") as client:
            with pytest.raises(Unreachable):
                await client.list()
        async with aio.Client(tmp_path / "s") as client:
            with pytest.raises(errors.ClaimRefused):
                await client.claim("gpu", count=99)
            async with await client.claim("gpu") as held:
                assert held.id in repr(held)

    with served(FakeBroker(tmp_path), tmp_path / "s"):
        asyncio.run(main())


def test_devices_and_cordons_are_the_same_through_every_door(tmp_path, hal_broker):
    device = hal_broker.devices()[0]
    assert hal_broker.cordons() == ()
    assert [one.target for one in hal_broker.cordon(device.id, "noisy")] == [device.id]
    assert [(one.target, one.why) for one in hal_broker.cordons()] == [(device.id, "noisy")]
    assert {one.id for one in hal_broker.devices()} == set(hal_broker.state.devices)
    assert 0 < hal_broker.status().now <= hal_broker.now() <= hal_broker.ledger.clock.now()
    broker = FakeBroker(tmp_path)
    broker.ahead = 1e6
    with served(broker, tmp_path / "s"), Client(tmp_path / "s") as client:
        told = client.cordon("gpu-1", "noisy")

        async def ask():
            async with aio.Client(tmp_path / "s") as other:
                assert await other.now() > time.time() + 9e5
                return await other.cordons(), await other.devices()

        assert client.now() > time.time() + 9e5, "by its clock, not by ours"
        assert (client.cordons(), client.devices()) == (told, broker.devices()) == asyncio.run(ask())


def test_one_connection_carries_one_question_after_the_other(tmp_path, monkeypatch):
    made = []
    connect = http1._connect
    monkeypatch.setattr(http1, "_connect", lambda *words: made.append(words) or connect(*words))
    with served(FakeBroker(tmp_path), tmp_path / "s"), Client(tmp_path / "s") as client:
        for _ in range(3):
            client.status()
    assert len(made) == 1


def test_one_connection_carries_one_question_after_the_other_with_asyncio_too(tmp_path, monkeypatch):
    made = []
    connect = asyncio.open_unix_connection
    monkeypatch.setattr(
        asyncio, "open_unix_connection", lambda *words, **more: made.append(words) or connect(*words, **more)
    )

    async def main():
        async with aio.Client(tmp_path / "s") as client:
            for _ in range(3):
                await client.status()

    with served(FakeBroker(tmp_path), tmp_path / "s"):
        asyncio.run(main())
    assert len(made) == 1


def test_a_socket_that_is_for_others_is_said_to_be_so():
    error = unreachable("/run/hal/hal.sock", PermissionError(13, "Permission denied"))
    assert "only its owner and its group" in str(error)
    assert "--group" in str(error)
    assert "Connection refused" in str(unreachable("/run/hal/hal.sock", ConnectionRefusedError("Connection refused")))
