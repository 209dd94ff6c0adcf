"""The server over a broker in memory: commits together, waiting, streams of events, sockets and set-up."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import threading

import msgspec
import pytest

from hal.api.client import Client
from hal.api.server.config import Config, read_config
from hal.api.server.listen import listen_unix
from hal.api.wire import Compacted, Unauthenticated
from hal.errors import BrokerError, ClaimError, ClaimRefused, HalError, LeaseNotFound, UsageError
from hal.interfaces.deadline import Deadline
from tests.unit.fake_broker import FakeBroker
from tests.unit.server_world import World, served, until, wanted


@pytest.fixture
def world(tmp_path):
    with World(tmp_path) as made:
        yield made


# --- commits together, waiting, events


@pytest.mark.parametrize("wrong", [None, 7])
def test_claims_of_many_connections_are_committed_together_and_a_wrong_one_spoils_nothing(world, wrong):
    world.broker.slow = 0.05
    answers: dict[int, object] = {}

    def ask(number):
        with Client(world.socket) as client:
            try:
                answers[number] = client.submit([wanted(f"c{number}", count=0 if number == wrong else 1)])[0]
            except HalError as error:
                answers[number] = error

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong is None or isinstance(answers.pop(wrong), ClaimError)
    granted = [number for number, answer in answers.items() if hasattr(answer, "lease")]
    assert all(answers[number].lease.id == f"c{number}" for number in granted), "to everyone their own answer"
    assert len(granted) == 8
    assert all("free" in answer.reason for number, answer in answers.items() if number not in granted)
    assert max(world.broker.submits) > 1


def test_a_waiting_claim_is_answered_as_soon_as_there_is_room(world):
    ada, eve = world.client("ada"), world.client("eve")
    ada.claim("gpu", count=8, id="all")
    got = []
    thread = threading.Thread(target=lambda: got.append(eve.claim(wanted("w", wait=True, wait_seconds=15.0))))
    thread.start()
    until(lambda: eve.queue())
    ada.release("all")
    thread.join(15)
    assert got[0].lease.state == "prepared"
    with pytest.raises(ClaimRefused, match="position 1"):
        eve.claim(wanted("x", count=8, wait=True, wait_seconds=0.1))
    assert [one.claim.id for one in eve.queue()] == ["x"], "it keeps its place"


def test_a_stream_begun_anywhere_tells_everything_once_and_in_order(world):
    ada, eve = world.client("ada"), world.client("eve")
    seen: dict[int, list] = {0: [], 5: [], 11: []}
    threads = [threading.Thread(target=lambda since=since: _collect(world, ada, since, seen[since])) for since in seen]
    for i in range(4):
        ada.claim("gpu", id=f"a{i}")
        eve.claim("gpu", id=f"e{i}")
    for thread in threads:
        thread.start()
    for i in range(30):
        (ada, eve)[i % 2].release(f"{'ae'[i % 2]}{i % 4 // 2}")
        (ada, eve)[i % 2].claim("gpu", id=f"{'ae'[i % 2]}-{i}").release()
    ada.claim("gpu", id="last")
    for thread in threads:
        thread.join(20)
    mine = [event for tenant, event in world.broker.history if tenant == "ada"]
    until(lambda: mine[-1].subject == "last")
    for since, events in seen.items():
        expected = [event for event in mine if event.revision > since]
        last = next(i for i, event in enumerate(expected) if event.subject == "last")
        assert events == expected[: last + 1]


def _collect(world, client, since, events):
    for event in client.watch(since, Deadline.after(20)):
        events.append(event)
        if event.subject == "last":
            return


def test_a_cursor_that_is_not_kept_any_more_is_answered_with_the_oldest_that_is(world):
    client = world.client()
    for i in range(6):
        client.claim("gpu", id=f"a{i}")
    world.broker.oldest = 4
    for ask in (lambda: list(client.events(1)), lambda: list(client.watch(1, Deadline.after(5)))):
        with pytest.raises(Compacted) as caught:
            ask()
        assert caught.value.oldest == 4
    assert world.http().get("/v1/events?since=3").status_code == 410
    assert next(client.events(4)).revision == 5


def test_last_event_id_wins_and_silence_is_broken_by_comments(world):
    world.service.app.streams._keep_alive = 0.1
    client = world.client()
    client.claim("gpu", id="a")
    headers = {"last-event-id": "1"}
    with world.http().stream("GET", "/v1/events/stream?since=0&seconds=5", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        said = ""
        for chunk in answer.iter_text():
            said += chunk
            if ": keep-alive" in said:
                break
    events = [json.loads(line[6:]) for line in said.splitlines() if line.startswith("data: ")]
    assert [event["revision"] for event in events] == [2]


def test_a_stream_ends_by_itself_and_with_the_server(tmp_path):
    with Client(tmp_path / "hal.sock") as client:
        with World(tmp_path) as world:
            assert list(client.watch(0, Deadline.after(0.2))) == []
            seen: list[object] = []
            thread = threading.Thread(target=lambda: seen.extend(client.watch(0, Deadline.after(2))))
            thread.start()
            until(lambda: len(world.service.app.streams))
        thread.join(15)
        assert seen == []


# --- sockets and set-up


def test_a_dead_servers_socket_is_replaced_and_a_living_ones_is_not(tmp_path):
    path = tmp_path / "hal.sock"
    listen_unix(path).close()
    assert path.is_socket()
    with World(tmp_path) as world:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with pytest.raises(BrokerError, match="already"):
            listen_unix(path)
        assert world.client().status()
    assert not path.exists(), "and is gone with its server"
    path.write_text("precious")
    with pytest.raises(BrokerError, match="no socket"):
        listen_unix(path)
    assert path.read_text() == "precious"


def test_a_socket_may_lie_deeper_than_its_address_can_say(tmp_path):
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    broker = FakeBroker(tmp_path)
    with served(broker, deep / "hal.sock"), Client(deep / "hal.sock") as client:
        assert client.claim("gpu").devices


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('listen = "127.0.0.1:0"\n', "nobody could be told"),
        ('listen = "0.0.0.0:0"\ntoken_key = "k"\n', "in the clear"),
        ('listen = "example.org:1"\ntoken_key = "k"\n', "in the clear"),
        ('listen = "localhost"\ntoken_key = "k"\n', "no address"),
        ('listen = "0.0.0.0:1"\n[tls]\ncertificate = "c"\nkey = "k"\n', "knows nobody"),
        ('[users]\nada = "physics//ada"\n', "tenant of ada"),
        ("[limits]\nmost_body_bytes = 0\n", "most_body_bytes"),
        ("sockett = 1\n", "allowed are"),
        ("[", "serve.toml"),
    ],
)
def test_a_set_up_that_is_not_safe_or_makes_no_sense_is_refused(tmp_path, text, said):
    (tmp_path / "serve.toml").write_text(text)
    with pytest.raises(UsageError, match=said):
        read_config(tmp_path / "serve.toml")


def test_what_the_table_of_users_says_counts(tmp_path):
    import pwd

    me = pwd.getpwuid(os.getuid()).pw_name
    broker = FakeBroker(tmp_path)
    with served(broker, tmp_path / "s", Config(users={me: "physics/lattice"})), Client(tmp_path / "s") as client:
        assert client.whoami().tenant == "physics/lattice"


def test_a_token_is_shown_over_loopback_and_without_one_nobody_is_served(tmp_path):
    world = World(tmp_path)
    world.config = msgspec.structs.replace(world.config, listen="127.0.0.1:0")
    with world:
        address = world.service.addresses[1]
        with Client(address, token=world.token("physics/ada")) as ada, Client(address) as anybody:
            assert ada.claim("gpu", id="a").lease.tenant == "physics/ada"
            assert ada.whoami().by == "token"
            with pytest.raises(Unauthenticated):
                anybody.list()


def test_health_and_readiness_need_no_name_and_tell_nothing(world):
    http = world.http()
    assert http.get("/healthz").json() == {"status": "alive", "detail": ""}
    assert http.get("/readyz").json()["status"] == "ready"
    world.broker.maintain = lambda: 1 / 0
    world.service.heart._maintain = world.broker.maintain
    until(lambda: http.get("/readyz").status_code == 503)
    assert "division" not in http.get("/readyz").text


def test_asyncio_serves_many_at_once(world):
    from hal.api import aio

    async def main():
        async with aio.Client(world.socket) as client:
            answers = await asyncio.gather(*[client.submit([wanted(f"a{i}")]) for i in range(8)])
            assert len({answer[0].lease.fence for answer in answers}) == 8
            seen = [event async for event in client.watch(0, Deadline.after(0.3))]
            assert {event.subject for event in seen} == {f"a{i}" for i in range(8)}
            async with await client.get("a0") as held:
                assert (await held.renew(120)).ttl_seconds == 120
                assert held.devices
            assert "a0" not in {lease.id for lease in await client.list()}
            with pytest.raises(LeaseNotFound):
                await client.renew("nobody")

    asyncio.run(main())
