"""Kubernetes' documents, in the shapes of drivers' examples, read as claims."""

from __future__ import annotations

import json

import pytest

from hal.api.dra import read_claim, read_documents
from hal.errors import ClaimError, SelectorError
from hal.model.claim import Claim, Constraint, Request, Share
from hal.model.claim_check import check_claim
from hal.model.kind import Kind

GPU_CLASS = "device.driver == 'gpu.nvidia.com' && device.attributes['gpu.nvidia.com'].type == 'gpu'"
NIC_CLASS = "device.driver == 'dra.net'"


def read(text: str, **words: object) -> Claim:
    """Read the one claim of a text with the classes beside it."""
    documents = read_documents(text)
    classes = [document for document in documents if document.get("kind") == "DeviceClass"]
    (claim,) = [document for document in documents if document.get("kind") != "DeviceClass"]
    return check_claim(read_claim(claim, classes, **words))  # type: ignore[arg-type]


def claim_of(requests: str, more: str = "", version: str = "v1") -> str:
    """Return a ResourceClaim with these requests (JSON)."""
    return (
        f'{{"apiVersion": "resource.k8s.io/{version}", "kind": "ResourceClaim", "metadata": {{"name": "c"}}, '
        f'"spec": {{"devices": {{"requests": [{requests}]{more}}}}}}}'
    )


def test_gpus_each_with_a_nic_at_the_same_root() -> None:
    claim = read("""
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {name: aligned, namespace: team-a}
spec:
  metadata: {labels: {x: y}}
  spec:
    devices:
      requests:
      - name: gpu
        exactly:
          deviceClassName: gpu.nvidia.com
          count: 2
          selectors:
          - cel:
              expression: device.capacity["gpu.nvidia.com"].memory.compareTo(quantity("40Gi")) >= 0
      - name: nic
        exactly:
          deviceClassName: dranet
          selectors: [{cel: {expression: 'device.attributes["dra.net"].rdma == true'}}]
      constraints:
      - requests: [gpu, nic]
        matchAttribute: resource.kubernetes.io/pcieRoot
      - matchAttribute: dra.net/numaNode
      - distinctAttribute: gpu.nvidia.com/uuid
        requests: [gpu]
""")
    assert claim.requests == (
        Request(
            kind=Kind.GPU,
            name="gpu",
            count=2,
            cel=(GPU_CLASS, 'device.capacity["gpu.nvidia.com"].memory.compareTo(quantity("40Gi")) >= 0'),
        ),
        Request(kind=Kind.RNIC, name="nic", cel=(NIC_CLASS, 'device.attributes["dra.net"].rdma == true')),
    )
    assert claim.constraints == (
        Constraint(same="node"),
        Constraint(same="resource.kubernetes.io/pcieRoot", requests=("gpu", "nic")),
        Constraint(same="numa"),
        Constraint(distinct="gpu.nvidia.com/uuid", requests=("gpu",)),
    )
    assert claim.tenant == "team-a"
    assert claim.id.startswith("team-a/aligned-")


def test_alternatives_in_the_order_in_which_they_are_liked() -> None:
    claim = read("""
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: big}
spec: {selectors: [{cel: {expression: 'device.driver == "gpu.nvidia.com"'}}], extendedResourceName: nvidia.com/gpu}
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaim
metadata: {name: pick, namespace: ns}
spec:
  devices:
    requests:
    - name: gpu
      firstAvailable:
      - {name: one, deviceClassName: big}
      - name: two
        deviceClassName: mig.nvidia.com
        count: 2
      - {name: any, deviceClassName: gpu.amd.com, allocationMode: All}
""")
    (request,) = claim.requests
    assert (claim.id, request.name, request.cel) == ("ns/pick", "gpu", ('device.driver == "gpu.nvidia.com"',))
    assert [(choice.count, choice.cost, choice.kind) for choice in request.or_else] == [
        (2, 1.0, Kind.GPU),
        ("all", 2.0, Kind.GPU),
    ]


@pytest.mark.parametrize("version", ["v1", "v1beta2", "v1beta1"])
def test_every_version_is_read(version: str) -> None:
    inner = {"deviceClassName": "gpu.nvidia.com", "allocationMode": "ExactCount", "count": 3}
    request = {"name": "g", **inner} if version == "v1beta1" else {"name": "g", "exactly": inner}
    claim = read(claim_of(json.dumps(request), version=version))
    assert claim.requests == (Request(kind=Kind.GPU, name="g", count=3, cel=(GPU_CLASS,)),)


def test_capacity_is_a_minimum_and_used_up_where_the_class_shares() -> None:
    inner = '"capacity": {"requests": {"memory": "10Gi", "dra.x/units": "1500m"}}'
    alone = read(claim_of(f'{{"name": "g", "exactly": {{"deviceClassName": "gpu.nvidia.com", {inner}}}}}'))
    assert alone.requests[0].capacity == {"memory_bytes": 10 * 2**30, "units": 2}
    assert alone.requests[0].share is Share.EXCLUSIVE
    selector = '"selectors": [{"cel": {"expression": "device.allowMultipleAllocations"}}]'
    shared = read(claim_of(f'{{"name": "g", "exactly": {{"deviceClassName": "gpu.nvidia.com", {inner}, {selector}}}}}'))
    assert shared.requests[0].share is Share.SHARED


def test_a_toleration_is_of_a_condition() -> None:
    inner = '"tolerations": [{"key": "gpu.nvidia.com/xid", "operator": "Exists", "effect": "NoSchedule"}]'
    claim = read(claim_of(f'{{"name": "g", "exactly": {{"deviceClassName": "gpu.nvidia.com", {inner}}}}}'))
    assert claim.requests[0].tolerate == ("xid",)


def test_what_kubernetes_has_no_field_for_can_be_added() -> None:
    request = '{"name": "g", "exactly": {"deviceClassName": "gpu.nvidia.com"}}'
    claim = read(claim_of(request), id="mine", tenant="t", priority=5, replicas=2, ttl_seconds=9.0)
    assert (claim.id, claim.tenant, claim.priority, claim.replicas, claim.ttl_seconds) == ("mine", "t", 5, 2, 9.0)


def test_a_class_of_an_unknown_driver_needs_a_kind() -> None:
    text = """
apiVersion: resource.k8s.io/v1
kind: List
items:
- apiVersion: resource.k8s.io/v1
  kind: DeviceClass
  metadata: {name: toy}
  spec: {selectors: [{cel: {expression: 'device.attributes["toy.example.com"].family == "x"'}}]}
- apiVersion: resource.k8s.io/v1
  kind: ResourceClaim
  metadata: {name: c}
  spec: {devices: {requests: [{name: r, exactly: {deviceClassName: toy}}]}}
"""
    with pytest.raises(ClaimError, match=r"kinds=\{'toy': Kind.GPU\}"):
        read(text)
    assert read(text, kinds={"toy.example.com": Kind.UPMEM}).requests[0].kind is Kind.UPMEM
    assert read(text, kinds={"toy": Kind.GPU}).requests[0].kind is Kind.GPU
    assert read(text.replace("toy.example.com", "mock-pmem.hal")).requests[0].kind is Kind.PMEM


def exactly(more: str) -> str:
    """Return a claim for one GPU that says something more."""
    return claim_of(f'{{"name": "g", "exactly": {{"deviceClassName": "gpu.nvidia.com", {more}}}}}')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (exactly('"adminAccess": true'), "adminAccess"),
        (exactly('"cuont": 2'), "cuont"),
        (exactly('"allocationMode": "Some"'), "allocationMode is 'Some'"),
        (exactly('"allocationMode": "All", "count": 2'), "all, and for 2"),
        (exactly('"capacity": {"requests": {"memory": "10GB"}}'), "'memory' is '10GB'"),
        (exactly('"tolerations": [{"operator": "Exists"}]'), "tolerates everything"),
        (exactly('"tolerations": [{"key": "a/b", "operator": "Equal", "value": "c"}]'), "asks for a value"),
        (exactly('"count": 0'), "count is 0"),
        (exactly('"count": "2"'), "int"),
        (claim_of('{"name": "g", "exactly": {"deviceClassName": "nobody.knows"}}'), "no DeviceClass 'nobody.knows'"),
        (claim_of('{"name": "g"}'), "no deviceClassName"),
        (claim_of('{"name": "g", "exactly": {"deviceClassName": "dranet"}, "firstAvailable": [{}]}'), "both exactly"),
        (claim_of("", ', "config": [{"opaque": {}}]'), "config is for a driver"),
        (claim_of("", ', "constraints": [{"requests": ["g"]}]'), "either matchAttribute or"),
        (claim_of("", ', "constraints": [{"requests": ["g/a"], "matchAttribute": "a/b"}]'), "alternative 'g/a'"),
        (claim_of("").replace("v1", "v1alpha3"), "apiVersion is 'resource.k8s.io/v1alpha3'"),
        (claim_of("").replace("ResourceClaim", "Pod"), "this is a Pod"),
        (claim_of(""), "asks for nothing"),
        ("[1]", "no object"),
        ("{", "neither YAML nor JSON"),
    ],
)
def test_what_cannot_be_meant_here_is_refused_by_its_name(text: str, message: str) -> None:
    with pytest.raises(ClaimError) as refused:
        read(text)
    assert message in str(refused.value)


def test_a_selector_with_a_mistake_is_refused_with_its_position() -> None:
    with pytest.raises(SelectorError, match="position 15"):
        read(exactly('"selectors": [{"cel": {"expression": "device.driver = 1"}}]'))
