"""A claim from a file: whatever it is written in, it is the same claim; a file that is none is said to be none."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import msgspec
import pytest

from hal.cli.claim_file import read_claim
from hal.cli.claims import claim_of
from hal.cli.options import parser
from hal.errors import ClaimError
from hal.model.claim import Constraint, Locality
from hal.model.kind import Kind

TOML = 'id = "t"\nsame = ["numa", "model"]\ndistinct = "uuid"\n[[requests]]\nkind = "gpu"\ncount = 2\n'
YAML = "id: t\nsame: [numa, model]\ndistinct: uuid\nrequests:\n- {kind: gpu, count: 2}\n"
JSON = '{"id": "t", "same": ["numa", "model"], "distinct": "uuid", "requests": [{"kind": "gpu", "count": 2}]}'
KUBERNETES = """\
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: big-gpu}
spec:
  selectors: [{cel: {expression: "device.driver == 'gpu.nvidia.com'"}}]
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaim
metadata: {name: train, namespace: physics}
spec:
  devices:
    requests:
    - name: gpu
      exactly: {deviceClassName: big-gpu, count: 2}
"""
CLASS, CLAIM = KUBERNETES.split("---\n")


@pytest.mark.parametrize(
    ("name", "text"),
    [("c.toml", TOML), ("c.yaml", YAML), ("c.yml", YAML), ("c.json", JSON), ("c", TOML), ("c", YAML), ("c", JSON)],
)
def test_toml_yaml_and_json_say_the_same(tmp_path, monkeypatch, name, text):
    (tmp_path / name).write_text(text)
    claim = read_claim(tmp_path / name)
    assert (claim.id, claim.requests[0].kind, claim.requests[0].count) == ("t", Kind.GPU, 2)
    assert claim.constraints == (Constraint(same="numa"), Constraint(same="model"), Constraint(distinct="uuid"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert read_claim(Path("-")) == claim


@pytest.mark.parametrize("order", [(CLASS, CLAIM), (CLAIM, CLASS)])
def test_a_claim_of_kubernetes_is_read_with_its_classes_and_options_win(tmp_path, order):
    (tmp_path / "k").write_text("---\n".join(order))
    claim = read_claim(tmp_path / "k")
    assert (claim.id, claim.tenant, claim.requests[0].kind) == ("physics/train", "physics", Kind.GPU)
    assert claim.requests[0].cel == ("device.driver == 'gpu.nvidia.com'",)
    assert claim.constraints[0].same == Locality.NODE
    words = ["claim", "--file", str(tmp_path / "k"), "--tenant", "biology", "--priority", "3", "--ttl", "15m"]
    said = claim_of(parser("claim").parse_args(words))
    assert (said.tenant, said.priority, said.ttl_seconds, said.requests) == ("biology", 3, 900.0, claim.requests)


def test_a_list_of_kubernetes_in_json_is_taken_apart(tmp_path):
    import yaml

    items = [yaml.safe_load(CLASS), yaml.safe_load(CLAIM)]
    (tmp_path / "k.json").write_bytes(msgspec.json.encode({"apiVersion": "v1", "kind": "List", "items": items}))
    assert read_claim(tmp_path / "k.json").id == "physics/train"


def test_a_date_in_a_file_is_when_it_starts(tmp_path):
    (tmp_path / "c.toml").write_text('start_at = 2031-05-01T08:00:00Z\n[[requests]]\nkind = "gpu"\n')
    (tmp_path / "c.yaml").write_text("start_at: 2031-05-01T08:00:00Z\nrequests: [{kind: gpu}]\n")
    assert {read_claim(tmp_path / name).start_at for name in ("c.toml", "c.yaml")} == {1935388800.0}


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("c", b"", "there is nothing in it"),
        ("c.yaml", b" \n\n", "there is nothing in it"),
        ("c", b"\xff\xfe\x00", "it is no text"),
        ("c.yaml", b"- gpu\n", "no object"),
        ("c", b"hello\n", "no object"),
        ("c.json", b"[1]", "an object"),
        ("c.json", b"{", "truncated"),
        ("c.yaml", b"a: [\n", "neither YAML nor JSON"),
        ("c.yaml", b"a: !!python/object/apply:os.system [true]\n", "neither YAML nor JSON"),
        ("c.yaml", YAML.encode() + b"---\n" + YAML.encode(), "2 claims"),
        ("c.yaml", b"apiVersion: v1\nkind: Pod\nmetadata: {name: web}\n", "apiVersion"),
        ("c.yaml", b"apiVersion: resource.k8s.io/v1\nkind: ResourceSlice\nmetadata: {name: s}\n", "ResourceSlice"),
        ("c.yaml", CLASS.encode(), "0 claims"),
        ("c.yaml", (CLAIM + "---\n" + CLAIM).encode(), "2 claims"),
        ("c.yaml", CLAIM.encode(), "there is no DeviceClass 'big-gpu'"),
        ("c.yaml", b"requests: [{kind: gpu, howmany: 2}]\n", "howmany"),
        ("c.yaml", b"x" * (5 << 20), "larger than 4 MiB"),
        ("c.yaml", b"[" * 5000, "c.yaml"),
    ],
)
def test_a_file_that_is_no_claim_is_said_to_be_none(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ClaimError, match=said) as caught:
        read_claim(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(ClaimError, match="cannot be read"):
        read_claim(tmp_path)
