"""Who is next: the published vectors, the reference on random trees, and what is promised in words."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.broker.fair import node, view
from hal.broker.fair.limits import LimitReached, QuotaExceeded
from hal.broker.fair.tree import FairTree
from hal.errors import BrokerError, UsageError
from hal.model.tenant import Tenant
from tests.budget import examples
from tests.unit.broker.fair_run import Churn

GPU = {"gpu": 1}


def always(group: Hashable) -> bool:
    return True


def serve(tree: FairTree, left: dict[str, int], tasks: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Serve claims named ``path#number`` of the groups ``path`` while there is room; return how many of each path."""
    served = dict.fromkeys(tasks, 0)
    while (found := tree.next(lambda path: all(left[r] >= a for r, a in tasks[str(path)].items()))) is not None:
        path = found.partition("#")[0]
        tree.use(path, tasks[path])
        tree.remove(found)
        served[path] += 1
        for resource, amount in tasks[path].items():
            left[resource] -= amount
    return served


def shared_out(capacity: dict[str, int], tasks: Mapping[str, Mapping[str, int]], many: int, **weights: int) -> Any:
    """Return how many of its tasks each path gets in an empty cluster, each having ``many``."""
    tree = FairTree()
    tree.set_total(capacity)
    for path, weight in weights.items():
        tree.set_tenant(Tenant(path=path, weight=weight))
    for path, amounts in tasks.items():
        for number in range(many):
            tree.push(f"{path}#{number}", path, amounts, path)
    return serve(tree, dict(capacity), tasks)


def reference_vectors() -> dict[str, Any]:
    folder = Path(os.environ.get("HAL_REFERENCE_DATA") or Path(__file__).parents[4] / "shared" / "data")
    file = folder / "fairness.json"
    if not file.is_file():
        pytest.skip(f"no fairness.json in {folder}; HAL_REFERENCE_DATA can name another folder")
    return json.loads(file.read_text())


def test_published_vectors_come_out_exactly():
    for name, vector in reference_vectors().items():
        tree, tasks, expected = FairTree(), {}, {}
        tree.set_total(vector["capacity"])
        stack = [("", vector["tree"])]
        while stack:
            path, node = stack.pop()
            if path:
                tree.set_tenant(Tenant(path=path, weight=node["weight"]))
            for child in node.get("children", ()):
                stack.append((f"{path}/{child['name']}" if path else child["name"], child))
            if "task" in node:
                tasks[path] = node["task"]
                expected[path] = vector["expect"][node["name"]]
                for number in range(node["tasks"]):
                    tree.push(f"{path}#{number}", path, node["task"], path)
        assert serve(tree, dict(vector["capacity"]), tasks) == expected, name


def test_a_blocked_sibling_holds_nobody_back():
    # Bhattacharya et al., SoCC 2013, blocked nodes: when the first resource is used up, the others share the second.
    tasks = {"a": {"x": 1}, "b": {"x": 1}, "c/one": {"x": 1}, "c/two": {"y": 1}, "d": {"y": 1}}
    assert shared_out({"x": 60, "y": 60}, tasks, 60) == {"a": 20, "b": 20, "c/one": 20, "c/two": 30, "d": 30}


def test_a_team_with_different_needs_is_not_punished_for_the_larger_one():
    # The same paper, rescaling: one holds all of x, which nobody else wanted; the other must still get its half of y.
    tree = FairTree()
    tree.set_total({"x": 10, "y": 10})
    tree.use("team/one", {"x": 10})
    tree.push("more", "team/one", {"x": 1}, "x")
    tasks = {"team/two": {"y": 1}, "alone": {"y": 1}}
    for path in tasks:
        for number in range(10):
            tree.push(f"{path}#{number}", path, {"y": 1}, path)
    assert serve(tree, {"x": 0, "y": 10}, {**tasks, "x": {"x": 1}}) == {"team/two": 5, "alone": 5, "x": 0}


def test_weights_divide_at_every_level():
    tasks = {"a": GPU, "b/one": GPU, "b/two": GPU}
    assert shared_out({"gpu": 12}, tasks, 12, a=1, b=2) == {"a": 4, "b/one": 4, "b/two": 4}


def test_who_waits_in_vain_does_not_let_the_team_have_more():
    tasks = {"team/busy": GPU, "other": GPU, "team/stuck": {"gpu": 64}}
    assert shared_out({"gpu": 32}, tasks, 32) == {"team/busy": 16, "other": 16, "team/stuck": 0}


def test_who_waits_in_vain_does_not_let_the_team_have_less():
    tree = FairTree()
    tree.set_total({"gpu": 1000, "rnic": 20})
    tasks: dict[str, Mapping[str, int]] = {"team/busy": {"rnic": 1}, "other": {"rnic": 1}}
    for number in range(10):
        tree.use(f"team/stuck{number}", {"gpu": 1})
        tree.push(f"team/stuck{number}#0", f"team/stuck{number}", {"gpu": 1000}, f"team/stuck{number}")
        tasks[f"team/stuck{number}"] = {"gpu": 1000}
    for path in ("team/busy", "other"):
        for number in range(20):
            tree.push(f"{path}#{number}", path, tasks[path], path)
    served = serve(tree, {"gpu": 990, "rnic": 20}, tasks)
    assert (served["team/busy"], served["other"]) == (10, 10)


@pytest.mark.parametrize("first_seed", range(0, examples(300), 10))
def test_the_tree_agrees_with_the_reference_through_churn(first_seed: int):
    for seed in range(first_seed, first_seed + 10):
        Churn(seed).run(60)


@pytest.mark.parametrize("many", [0, 2])
def test_it_does_so_where_leaves_are_kept_in_lines(monkeypatch: pytest.MonkeyPatch, many: int):
    # As among more than 64 children, which no random tree has.
    monkeypatch.setattr(node, "MANY", many)
    monkeypatch.setattr(view, "FEW", many // 2)
    for seed in range(examples(40)):
        Churn(100_000 + seed).run(60)


def test_a_higher_class_goes_first_and_a_guarantee_goes_first_within_a_class():
    tree = FairTree()
    tree.set_total({"gpu": 8})
    tree.set_tenant(Tenant(path="b", guarantee={"gpu": 2}))
    tree.use("b", GPU)
    tree.push("a0", "a", GPU, 1, 0)
    tree.push("b0", "b", GPU, 1, 0)
    tree.push("b1", "b", GPU, 1, 0)
    tree.push("c9", "c", GPU, 1, 9)
    assert tree.order() == ["c9", "b0", "a0", "b1"]
    assert tree.order(2) == ["c9", "b0"]


def test_a_tenant_serves_its_claims_by_age_then_arrival():
    tree = FairTree()
    tree.set_total({"gpu": 8})
    for name, since in (("late", 2.0), ("first", 1.0), ("second", 1.0)):
        tree.push(name, "a", GPU, 1, 0, since)
    assert tree.order() == ["first", "second", "late"]
    assert len(tree) == 3
    assert "late" in tree


def test_a_quota_is_named_with_the_node_whose_it_is():
    tree = FairTree()
    tree.set_tenant(Tenant(path="org", quota={"gpu": 3}))
    tree.use("org/team", {"gpu": 2})
    assert tree.verdict("org/other", GPU) is None
    refused = tree.verdict("org/other", {"gpu": 2})
    assert refused == QuotaExceeded(path="org", resource="gpu", used=2, asked=2, quota=3)
    assert str(refused) == "tenant 'org' uses 2 of its quota of 3 gpu, and 2 were asked for"
    tree.push("big", "org/other", {"gpu": 2}, 1)
    assert tree.next(always) is None
    tree.give_back("org/team", {"gpu": 2})
    assert tree.next(always) == "big"


def test_a_claim_that_a_quota_refuses_does_not_lower_its_organisation():
    tree = FairTree()
    tree.set_total({"gpu": 8})
    tree.set_tenant(Tenant(path="a", quota={"gpu": 3}))
    tree.use("a", GPU)
    tree.push("small", "a", GPU, 1)
    tree.push("refused", "a/x", {"gpu": 3}, 3)
    tree.push("other", "b", GPU, 1)
    tree.push("large", "b", {"gpu": 3}, 3)
    assert tree.next(always) == "other"


def test_limits_hold_at_every_level():
    tree = FairTree()
    tree.set_tenant(Tenant(path="org", most_claims=1, most_waiting=1))
    assert tree.admit("org/a", waiting=False) is None
    tree.use("org/a", GPU)
    tree.push("c", "org/a", GPU, 1)
    assert tree.admit("org/b", waiting=False) == LimitReached(path="org", what="leases", limit=1)
    assert tree.admit("org/b", waiting=True) == LimitReached(path="org", what="waiting claims", limit=1)


def test_victims_are_who_borrows_most():
    tree = FairTree()
    tree.set_total({"gpu": 8})
    tree.set_tenant(Tenant(path="kept", guarantee={"gpu": 4}))
    for path, amount in (("kept", 4), ("much", 3), ("little", 1)):
        tree.use(path, {"gpu": amount})
    assert tree.over_share("much") == Fraction(9, 8)
    assert tree.over_share("kept") == 1
    leases = [(path, priority) for path in ("kept", "little", "much") for priority in (1, 0)]
    first = sorted(leases, key=lambda lease: tree.victim_key(*lease, 10.0, GPU))
    assert first == [("much", 0), ("little", 0), ("kept", 0), ("much", 1), ("little", 1), ("kept", 1)]


def test_a_tenant_nobody_named_is_forgotten_when_it_has_gone():
    tree = FairTree()
    tree.use("a/b", GPU)
    assert [row.tenant.path for row in tree.report()] == ["", "a", "a/b"]
    tree.give_back("a/b", GPU)
    assert [row.tenant.path for row in tree.report()] == [""]


def test_mistakes_are_refused():
    tree = FairTree()
    with pytest.raises(BrokerError, match="more than it uses"):
        tree.give_back("a", GPU)
    with pytest.raises(UsageError, match="negative"):
        tree.use("a", {"gpu": -1})
    with pytest.raises(UsageError, match="weight 0"):
        tree.set_tenant(Tenant(path="a", weight=0))
    tree.push("c", "a", GPU, 1)
    with pytest.raises(UsageError, match="waiting already"):
        tree.push("c", "a", GPU, 1)
    assert tree.remove("c")
    assert not tree.remove("c")


@settings(max_examples=examples(60), deadline=None)
@given(
    claims=st.lists(
        st.tuples(st.sampled_from(["a", "a/x", "a/y", "b", "b/x", "c"]), st.integers(1, 8), st.integers(0, 2)),
        max_size=40,
    ),
    ends=st.randoms(use_true_random=False),
)
def test_nobody_who_fits_an_empty_cluster_waits_for_ever(claims, ends):
    tree, total, used = FairTree(), 8, 0
    tree.set_total({"gpu": total})
    held: list[tuple[str, int]] = []
    for number, (path, amount, priority) in enumerate(claims):
        tree.push(str(number), path, {"gpu": amount}, amount, priority, float(number))
    waiting = {str(number): claim for number, claim in enumerate(claims)}
    while waiting:
        free = total - used
        found = tree.next(lambda amount: isinstance(amount, int) and amount <= free)  # noqa: B023
        if found is not None:
            path, amount, _ = waiting.pop(found)
            tree.use(path, {"gpu": amount})
            tree.remove(found)
            held.append((path, amount))
            used += amount
            continue
        assert held, f"{waiting} wait for an empty cluster"
        path, amount = held.pop(ends.randrange(len(held)))
        tree.give_back(path, {"gpu": amount})
        used -= amount
