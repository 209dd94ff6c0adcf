"""The server over a broker in memory: who may what, what is refused how, and that nothing is lost on the way."""

from __future__ import annotations

import os
import socket
import stat
import time

import msgspec
import pytest

from hal.api.ask import make_claim
from hal.api.client import Client
from hal.api.server.config import Config
from hal.api.server.veil import unnamed
from hal.api.tokens import make_key, make_token, read_key
from hal.api.wire import Forbidden, Limited
from hal.errors import ClaimRefused, LeaseNotFound, UsageError
from hal.interfaces.deadline import Deadline
from hal.model.kind import Kind
from hal.model.tenant import Tenant
from tests.unit.server_world import World, served, until, wanted


@pytest.fixture
def world(tmp_path):
    with World(tmp_path) as made:
        yield made


# --- who may what


def test_a_foreign_claim_can_neither_be_seen_nor_touched(world):
    ada, eve = world.client("physics/ada"), world.client("biology/eve")
    held = ada.claim("gpu", count=8, id="theirs")
    assert held.lease.tenant == "physics/ada"
    assert ada.submit([wanted("w", wait=True)])[0].position == 1
    missing = [lambda name, verb=verb: getattr(eve, verb)(name) for verb in ("get", "renew", "release")]
    missing += [lambda name: eve.resize(name, 1), lambda name: eve.wait_for(name, Deadline.after(0))]
    for verb in missing:
        errors = []
        for name in ("theirs", "never-was"):
            with pytest.raises(LeaseNotFound) as caught:
                verb(name)
            errors.append(str(caught.value).replace(name, "?"))
        assert errors[0] == errors[1], "that it exists is not to be seen by how it is refused"
    assert (eve.list(), eve.queue(), list(eve.events()), eve.status().leases, eve.status().fenced) == (
        (),
        (),
        [],
        0,
        (),
    )
    assert eve.list("physics/ada") == eve.list("physics") == ()
    assert len(eve.devices()) == 8, "that a device exists is no secret"
    assert held.id in [lease.id for lease in ada.list()]


def test_no_text_names_what_is_somebody_elses(world):
    ada, eve = world.client("physics/ada"), world.client("biology/eve")
    ada.claim("gpu", count=8, id="secret-lease")
    with pytest.raises(ClaimRefused) as caught:
        eve.claim("gpu")
    waiting = eve.submit([wanted("w", wait=True)])[0]
    texts = [str(caught.value), waiting.why, eve.queue()[0].why, *[row.reason for row in eve.explain("gpu").devices]]
    texts.append(eve.submit([wanted("y")])[0].reason)
    told = eve.explain("gpu")
    texts += [told.conflict.text, *told.nearest, *[near.text for near in told.nearby]]
    assert texts[3] == "held by somebody else"
    assert not [text for text in texts if "secret-lease" in text or "physics" in text]
    assert told.nearest == ("gpu:1",), "what names nobody stays"
    assert "secret-lease" in ada.explain("gpu").devices[0].reason, "one's own is named"
    assert len(ada.explain("gpu").nearby) == 2


@pytest.mark.parametrize("id", ["secret,lease", "(secret)", "it's:secret;", '"secret"', "a/secret"])
def test_an_id_of_odd_signs_is_hidden_as_well(world, id):
    world.client("physics").claim("gpu", count=8, id=id)
    told = world.client("biology").explain("gpu")
    assert {row.reason for row in told.devices} == {"held by somebody else"}
    assert "secret" not in str(told)


def test_whoever_is_pushed_out_is_not_told_by_whom(tmp_path, hal_broker):
    key_file = tmp_path / "key"
    make_key(key_file)
    config = Config(token_key=str(key_file), tick_seconds=0.2)

    def client(tenant, **words):
        return Client(tmp_path / "s", token=make_token(read_key(key_file), tenant, 600, **words))

    gpus = sum(device.kind is Kind.GPU for device in hal_broker.devices())
    with (
        served(hal_broker, tmp_path / "s", config),
        client("physics") as ada,
        client("biology") as eve,
        client("ops", role="operator") as operator,
    ):
        eve.claim("gpu", count=gpus, id="mine", grace_seconds=600.0, ttl_seconds=600.0)
        secret = {"count": gpus, "priority": 7, "preempt": True, "wait": True, "id": "secret-train"}
        ada.submit([make_claim("gpu", **secret)])
        (lease,) = until(lambda: [one for one in eve.list() if one.notice])
        assert lease.notice == "its devices are needed for another claim (priority 7)"
        assert eve.get("mine").lease.notice == eve.renew("mine").notice == lease.notice
        assert "secret-train" in operator.list("biology")[0].notice, "operators see whom"
        assert ada.queue()[0].why == "it waits for others to leave"
        seen = list(eve.watch(0, Deadline.after(0.3)))
        assert seen == list(eve.events())
        texts = [event.detail for event in [*seen, *ada.events()]]
        assert any("another claim (priority 7)" in text for text in texts)
        assert any("waits for others" in text for text in texts)
        assert not [text for text in [event.detail for event in seen] if "secret" in text]
        assert not [event for event in ada.events() if "mine" in event.detail]
        texts = [event.detail for event in operator.events()]
        assert any("secret-train" in text for text in texts)
        assert any("waits for mine" in text for text in texts)


def test_an_end_that_was_for_somebody_else_names_nobody():
    why = "the lease is over: its devices are needed for a,b(c) (priority 3); unprepared by the agent"
    assert (
        unnamed(why)
        == "the lease is over: its devices are needed for another claim (priority 3); unprepared by the agent"
    )
    assert unnamed("it waits for a, b c/d, e to leave") == "it waits for others to leave"
    assert unnamed("released by its holder") == "released by its holder"


def test_those_above_see_what_is_below_and_operators_see_all(world):
    world.client("physics/lattice/ada").claim("gpu", id="a")
    world.client("physicist").claim("gpu", id="b")
    assert [lease.id for lease in world.client("physics").list()] == ["a"], "physicist only begins like physics"
    assert [lease.id for lease in world.client("physics").list("physics/lattice")] == ["a"]
    operator = world.client("ops", role="operator")
    assert {lease.id for lease in operator.list()} == {"a", "b"}
    assert operator.release("a").why_ended


def test_what_a_claim_says_of_its_tenant_counts_below_the_callers_own_alone(world):
    ada = world.client("physics")
    answers = ada.submit([wanted("a", tenant="biology"), wanted("b", tenant="physics/lattice"), wanted("c")])
    assert [answer.lease.tenant for answer in answers] == ["physics", "physics/lattice", "physics"]
    assert world.client("ops", role="operator").submit([wanted("d", tenant="biology")])[0].lease.tenant == "biology"


def test_only_operators_cordon_drain_repair_and_set_quotas(world):
    ada, ops = world.client("physics/ada"), world.client("ops", role="operator")
    for verb in (
        lambda who: who.cordon("gpu-0", "noisy"),
        lambda who: who.uncordon("gpu-0"),
        lambda who: who.drain("gpu-1", "firmware", grace_seconds=5),
        lambda who: who.repair("gpu-0"),
        lambda who: who.set_tenant(Tenant(path="physics", weight=3)),
        lambda who: who.remove_tenant("physics"),
    ):
        with pytest.raises(Forbidden):
            verb(ada)
        verb(ops)
    assert ops.cordon("gpu-2", by="somebody else")[-1].by == "ops", "the server knows who it was"


def test_a_token_for_one_claim_is_good_for_that_claim(world):
    ada = world.client("physics/ada")
    ada.claim("gpu", id="mine")
    ada.claim("gpu", id="other")
    helper = world.client("physics/ada", claim="mine")
    assert helper.renew("mine", 90).ttl_seconds == 90
    assert [lease.id for lease in helper.list()] == ["mine"]
    assert {event.subject for event in helper.events()} == {"mine"}
    with pytest.raises(LeaseNotFound):
        helper.release("other")
    with pytest.raises(Forbidden):
        helper.submit([wanted("third")])


@pytest.mark.parametrize("what", ["forged", "over", "endless", "none", "basic", "nonsense", "other audience"])
def test_a_token_that_is_not_good_is_refused(world, what):
    import jwt

    says = {"aud": "hal", "iat": time.time(), "exp": time.time() + 60, "tenant": "physics", "role": "operator"}
    shown = {
        "forged": "Bearer " + jwt.encode(says, os.urandom(32), algorithm="HS256"),
        "over": "Bearer " + make_token(world.key, "physics", 60, now=time.time() - 90),
        "endless": "Bearer " + jwt.encode({**says, "exp": time.time() + 1e6}, world.key, algorithm="HS256"),
        "none": "Bearer " + jwt.encode(says, None, algorithm="none"),
        "basic": "Basic cm9vdDpyb290",
        "nonsense": "Bearer \xff.x.y",
        "other audience": "Bearer " + jwt.encode({**says, "aud": "x"}, world.key, algorithm="HS256"),
    }[what]
    answer = world.http().get("/v1/leases", headers={"authorization": shown.encode("latin-1")})
    assert answer.status_code == 401, answer.text
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.json()["type"] == "urn:hal:error:Unauthenticated"


def test_a_key_is_private_and_never_replaced(tmp_path):
    make_key(tmp_path / "key")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    with pytest.raises(UsageError, match="exists"):
        make_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(UsageError, match="others may read"):
        read_key(tmp_path / "key")
    (tmp_path / "short").touch(0o600)
    with pytest.raises(UsageError, match="no key"):
        read_key(tmp_path / "short")


# --- what is refused, and how


def test_every_mistake_is_a_problem_document_that_says_what_to_do(world):
    http = world.http()
    good = msgspec.json.encode(wanted("a"))
    js = {"content-type": "application/json"}
    for status, answer in (
        (400, http.post("/v1/claims", content=b"{", headers=js)),
        (400, http.post("/v1/claims", content=b'{"id":"a","requests":[{"kind":"gpu","conut":2}]}', headers=js)),
        (400, http.post("/v1/claims", content=b"[" * 100_000, headers=js)),
        (400, http.post("/v1/claims", content=b'"\xff"', headers=js)),
        (400, http.post("/v1/claims:batch", content=msgspec.json.encode({"claims": [wanted("x")] * 1001}), headers=js)),
        (400, http.get("/v1/leases?tenat=physics")),
        (400, http.get("/v1/leases?tenant=a&tenant=b")),
        (400, http.get("/v1/events?since=-1")),
        (400, http.get("/v1/events?since=1e3")),
        (400, http.get("/v1/claims/a?wait_seconds=nan")),
        (404, http.get("/v1/leases/%00%ff")),
        (404, http.get("/v1/lease")),
        (404, http.get("/")),
        (405, http.put("/v1/leases")),
        (405, http.request("TRACE", "/v1/status")),
        (413, http.post("/v1/claims", content=b" " * (5 << 20), headers=js)),
        (415, http.post("/v1/claims", content=good, headers={"content-type": "text/plain"})),
        (415, http.post("/v1/claims", content=good)),
    ):
        problem = answer.json()
        assert answer.status_code == status, (answer.request.url, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        assert problem["status"] == status
        assert problem["title"]
        assert problem["detail"]
        assert problem["hint"]
        assert "Traceback" not in answer.text
        assert (status == 405) == ("allow" in answer.headers)


def test_a_body_in_pieces_is_counted_as_it_comes(world):
    answer = world.http().post(
        "/v1/claims", content=(b" " * 65536 for _ in range(100)), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 413


def test_a_mistake_of_ours_is_said_without_its_traceback(world, caplog):
    world.broker.fail = ZeroDivisionError("at the wrong place")
    answer = world.http().post("/v1/claims", json=msgspec.to_builtins(wanted("a")))
    assert answer.status_code == 500
    assert "Traceback" not in answer.text
    assert "at the wrong place" in caplog.text
    world.broker.fail = None
    assert world.client().claim("gpu").devices


def talk(path, *pieces):
    """Send pieces to the server, each when the one before was sent; return what comes until it closes."""
    with socket.socket(socket.AF_UNIX) as end:
        end.settimeout(20)
        end.connect(str(path))
        for piece in pieces:
            end.sendall(piece)
        said = b""
        while chunk := end.recv(65536):
            said += chunk
        return said.decode()


HEAD = b"POST /v1/claims HTTP/1.1\r\nhost: hal\r\ncontent-type: application/json\r\n"


def test_whoever_dawdles_is_sent_away(tmp_path):
    with World(tmp_path, header_seconds=0.3, body_seconds=0.3, most_header_bytes=4096) as world:
        assert "408" in talk(world.socket, b"").split("\r\n")[0]
        assert "408" in talk(world.socket, HEAD).split("\r\n")[0]
        assert "408" in talk(world.socket, HEAD + b"content-length: 50\r\n\r\n", b"{").split("\r\n")[0]
        assert "431" in talk(world.socket, HEAD + b"x: " + b"y" * 5000).split("\r\n")[0]
        assert "400" in talk(world.socket, b"\x16\x03\x01 this is TLS\r\n\r\n").split("\r\n")[0]
        assert world.client().whoami().operator == (os.getuid() == 0), "and everybody else is served"


def test_one_user_cannot_take_all_connections(tmp_path):
    with World(tmp_path, connections_per_user=3) as world:
        ends = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for end in ends:
            end.connect(str(world.socket))
        until(lambda: "503" in talk(world.socket).split("\r\n")[0])
        for end in ends:
            end.close()
        until(lambda: world.http().get("/healthz").status_code == 200)


def test_too_many_claims_are_told_when_to_come_again(tmp_path):
    with World(tmp_path, claims_per_second=5, burst_seconds=1) as world:
        ada = world.client("physics/ada")
        ada.submit([wanted(f"a{i}") for i in range(5)])
        with pytest.raises(Limited) as caught:
            ada.submit([wanted("b"), wanted("c")])
        assert 0 < caught.value.retry_after_seconds <= 0.5
        world.client("physics/eve").submit([wanted("d")])
        headers = {"authorization": "Bearer " + world.token("physics/ada")}
        answer = world.http().post(
            "/v1/claims:batch", json={"claims": [msgspec.to_builtins(wanted("e"))] * 5}, headers=headers
        )
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")


def test_what_was_said_about_a_tenant_counts_for_all_below_it(tmp_path):
    with World(tmp_path, burst_seconds=1) as world:
        world.broker.set_tenant(Tenant(path="physics", claims_per_second=2))
        world.client("physics/ada").submit([wanted("a"), wanted("b")])
        with pytest.raises(Limited, match="physics may make 2 claims a second"):
            world.client("physics/eve").submit([wanted("c")])
        world.client("biology").submit([wanted("d")])


def test_open_claims_are_limited(tmp_path):
    with World(tmp_path, most_open_claims=2) as world:
        ada = world.client("ada")
        ada.submit([wanted("a"), wanted("b", count=99, wait=True)])
        with pytest.raises(Limited, match="2 open claims"):
            ada.submit([wanted("c")])
        ada.release("a")
        until(lambda: _granted(ada, "d"))


def _granted(client, id):
    try:
        return client.submit([wanted(id)])
    except Limited:
        return None
