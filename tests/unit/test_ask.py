"""The short form of a claim: keywords that read like a sentence, and errors that say which word was meant."""

from __future__ import annotations

import msgspec
import pytest

from hal.api.ask import make_claim, pairs
from hal.api.ask_where import KNOWN
from hal.errors import ClaimError
from hal.model.attributes import known
from hal.model.claim import Claim, Constraint, Gang, Gather, Locality, Preempt, Request, Share
from hal.model.claim_check import check_claim
from hal.model.device import Device, Location
from hal.model.kind import Kind
from hal.model.selector import compile_selector

H100 = Device(
    id="g",
    kind=Kind.GPU,
    name="gpu0",
    driver="nvidia",
    location=Location(node="n1", numa_node=0),
    attributes={
        name: known(value, "test") for name, value in {"model": "NVIDIA H100 80GB", "vendor": "NVIDIA"}.items()
    },
    capacity={"memory_bytes": 85_520_809_984},
)


@pytest.mark.parametrize(
    ("words", "fits"),
    [
        ({}, True),
        ({"model": "NVIDIA H100*"}, True),
        ({"model": "NVIDIA H100"}, False),
        ({"model": "*H100 ??GB"}, True),
        ({"model": "*h100*"}, False),
        ({"model": "H100*GB"}, False),
        ({"model": "NVIDIA*80"}, False),
        ({"model": "NVIDIA.H100*"}, False),
        ({"model": ("NVIDIA A100*", "NVIDIA H100*")}, True),
        ({"memory_gb": 80}, True),
        ({"memory_gib": 80}, False),
        ({"memory_gib": 79.5}, True),
        ({"min_memory_bytes": 1, "max_memory_gb": 90}, True),
        ({"numa_node": 0}, True),
        ({"numa": (1, 2)}, False),
        ({"vendor": "NVIDIA", "node": ["n1", "n2"]}, True),
        ({"serial": None}, True),
        ({"vendor": None}, False),
        ({"where": "numa == 1 or numa == 0", "vendor": "AMD"}, False),
        ({"where": 'vendor == "AMD" or numa == 0', "name": "gpu0"}, True),
        ({"model": "quote'\"s"}, False),
    ],
)
def test_words_become_a_selector_that_means_what_they_say(words: dict[str, object], fits: bool) -> None:
    claim = check_claim(make_claim("gpu", **words))  # type: ignore[arg-type]
    assert compile_selector(claim.requests[0].where, KNOWN).matches(H100) is fits


def test_every_field_of_a_claim_can_be_said() -> None:
    said = {
        "tenant": "a/b",
        "ttl_seconds": 5.0,
        "replicas": 2,
        "max_replicas": 4,
        "gang": Gang(how=Gather.SPREAD, over=Locality.NODE),
        "priority": 7,
        "preempt": Preempt.LOWER,
        "grace_seconds": 1.0,
        "start_at": 9.0,
        "duration_seconds": 3.0,
        "wait": True,
        "wait_seconds": 2.0,
        "id": "x",
        "constraints": (Constraint(distinct="board_id"),),
    }
    claim = check_claim(make_claim("gpu", **said))  # type: ignore[arg-type]
    assert set(said) == set(Claim.__struct_fields__) - {"requests"}
    assert {name: getattr(claim, name) for name in said} == said


def test_every_field_of_a_request_can_be_said() -> None:
    said = {
        "count": "all",
        "cel": ("true",),
        "capacity": {"memory_bytes": 5},
        "share": Share.SHARED,
        "tolerate": ("xid",),
        "or_else": (Request(kind=Kind.GPU, cost=2.0),),
        "cost": 1.0,
        "where": "numa == 0",
    }
    request = check_claim(make_claim("gpu", **said)).requests[0]  # type: ignore[arg-type]
    assert {name: getattr(request, name) for name in said} == said
    assert make_claim("gpu", profile="1g.10gb", cel="true", tolerate="xid").requests[0] == Request(
        kind=Kind.GPU, profile="1g.10gb", cel=("true",), tolerate=("xid",)
    )


def test_short_words_stand_for_long_ones() -> None:
    assert make_claim("gpu", fraction=0.25).requests[0] == Request(
        kind=Kind.GPU, capacity={"fraction_milli": 250}, share=Share.SHARED
    )
    assert make_claim("gpu", gang="spread:node").gang == Gang(how=Gather.SPREAD, over=Locality.NODE)
    assert make_claim("gpu", preempt=True).preempt is Preempt.LOWER
    assert make_claim("gpu", same=("numa", "nvlink"), distinct="board_id").constraints == (
        Constraint(same="numa"),
        Constraint(same="link-domain"),
        Constraint(distinct="board_id"),
    )
    assert make_claim("gpu", same="pci_switch").constraints == (Constraint(same="pci-switch"),)


def test_near_gives_each_device_one_of_another_kind_beside_it() -> None:
    claim = check_claim(make_claim("gpu", count=4, near="rnic", model="NVIDIA*"))
    assert [request.kind for request in claim.requests] == [Kind.GPU, Kind.RNIC]
    assert [request.count for request in claim.requests] == [4, 4]
    assert claim.constraints == (Constraint(same="pci-switch", pairwise=True),)
    assert make_claim("gpu", near=("rnic", "numa")).constraints == (Constraint(same="numa", pairwise=True),)


def test_pairs_are_claimed_like_anything_else() -> None:
    claim = check_claim(make_claim(pairs("gpu", "rnic", count=4, where="numa == 0"), priority=3, same="node"))
    assert claim.requests == (Request(kind=Kind.GPU, count=4, where="numa == 0"), Request(kind=Kind.RNIC, count=4))
    assert claim.constraints == (Constraint(same="pci-switch", pairwise=True), Constraint(same="node"))
    assert claim.priority == 3
    wish = make_claim(pairs("gpu", Request(kind=Kind.RNIC, count=2), count=2, same="numa", weight=2.0))
    assert wish.constraints == (Constraint(same="numa", pairwise=True, weight=2.0),)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ({"modell": "x"}, "model?"),
        ({"memroy_gb": 80}, "memory_bytes?"),
        ({"priorty": 3}, "priority?"),
        ({"numanode": 0}, "numa_node?"),
        ({"zzzz": 0}, "where="),
        ({"memory_gb": "80"}, "memory_gb=80"),
        ({"model": ()}, "any of nothing"),
        ({"model": 3 + 4j}, "model="),
        ({"fraction": 2}, "at most 1"),
        ({"near": "nick"}, "rnic"),
        ({"gang": "loose"}, "spread"),
        ({"preempt": "all"}, "never"),
        ({"same": ""}, "numa"),
        ({"share": "some"}, "exclusive"),
        ({"replicas": "2"}, "int"),
    ],
)
def test_a_slip_is_answered_with_what_was_perhaps_meant(words: dict[str, object], hint: str) -> None:
    with pytest.raises(ClaimError) as refused:
        make_claim("gpu", **words)  # type: ignore[arg-type]
    assert hint in str(refused.value)


def test_words_of_a_request_do_not_go_with_requests() -> None:
    for words in ({"count": 2}, {"model": "x"}, {"near": "rnic"}):
        with pytest.raises(ClaimError, match="belong to the requests"):
            make_claim(Request(kind=Kind.GPU), **words)  # type: ignore[arg-type]
    whole = make_claim("gpu")
    assert make_claim(whole) == whole
    assert msgspec.json.decode(msgspec.json.encode(whole), type=Claim) == whole
