"""The server survives whatever its own OpenAPI document lets one think of: schemathesis against a socket."""

from __future__ import annotations

import json

import hypothesis
import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck
from schemathesis import openapi
from schemathesis.checks import CHECKS, load_all_checks

from hal.api.local import LocalBroker
from hal.api.server.config import Config, Limits
from hal.api.tokens import make_key, make_token, read_key
from hal.broker.journal.memory import MemoryStore
from tests.budget import examples
from tests.unit.broker.world import server
from tests.unit.server_world import served

load_all_checks()
NAMES = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    """Where a server listens on loopback, and an operator's token."""
    folder = tmp_path_factory.mktemp("fuzz")
    make_key(folder / "key")
    token = make_token(read_key(folder / "key"), "ops", 3600, role="operator")
    limits = Limits(claims_per_second=1e6, longest_wait_seconds=0.01)
    config = Config(token_key=str(folder / "key"), listen="127.0.0.1:0", limits=limits)
    devices = tuple(device for n in range(2) for device in server(f"node{n}"))
    with LocalBroker({}, MemoryStore(), folder, observe=lambda: devices, prepares=False) as broker:
        broker.all, broker.history = devices, ()
        with served(broker, folder / "hal.sock", config) as service:
            yield service.addresses[1], token


def _operations(address):
    import urllib.request

    with urllib.request.urlopen(f"{address}/openapi.json", timeout=20) as answer:
        return json.load(answer)


def test_the_document_is_one_of_openapi_3_1_and_every_reference_in_it_leads_somewhere(door):
    document = _operations(door[0])
    assert document["openapi"] == "3.1.0"
    text = json.dumps(document)
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        jsonschema.Draft202012Validator.check_schema(document["components"]["schemas"][name])
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (path, method)
            assert any(status.startswith("2") for status in operation["responses"])
            for status, response in operation["responses"].items():
                if int(status) >= 400 and path != "/readyz":
                    assert "application/problem+json" in response["content"], (path, method, status)


def test_it_survives_what_its_document_allows_and_what_it_does_not(door):
    address, token = door
    schema = openapi.from_url(f"{address}/openapi.json")
    checks = [CHECKS.get_one(name) for name in NAMES]
    asked = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path == "/v1/events/stream":
            continue  # it goes on for as long as one listens

        @hypothesis.settings(
            max_examples=examples(3),
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy() | operation.as_strategy(generation_mode=_NEGATIVE))
        def ask(case):
            nonlocal asked
            asked += 1
            answer = case.call(headers={"authorization": f"Bearer {token}"}, timeout=20)
            case.validate_response(answer, checks=checks)
            assert "Traceback" not in answer.text

        ask()
    assert asked > 50


_NEGATIVE = schemathesis.GenerationMode.NEGATIVE
