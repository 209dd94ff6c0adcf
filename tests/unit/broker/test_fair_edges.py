"""What is promised, limited or weighed beyond reason: it is refused and changes nothing, or it does what is written."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.broker.fair.tree import FairTree
from hal.errors import HalError
from hal.model.tenant import Tenant
from tests.budget import examples

GPU = {"gpu": 1}


def tree_of(total: int, *tenants: Tenant) -> FairTree:
    tree = FairTree()
    tree.set_total({"gpu": total})
    for tenant in tenants:
        tree.set_tenant(tenant)
    return tree


def served(tree: FairTree, room: int) -> list[str]:
    """Serve claims of one GPU each while there is room, and return whose they were."""
    found = []
    for _ in range(room):
        claim = tree.next(lambda group: True)
        if claim is None:
            break
        path = claim.partition("#")[0]
        tree.use(path, GPU)
        tree.remove(claim)
        found.append(path)
    return found


@pytest.mark.parametrize(
    "mistake",
    [
        lambda tree: tree.set_tenant(Tenant(path="a", weight=0)),
        lambda tree: tree.set_tenant(Tenant(path="a", weight=-3)),
        lambda tree: tree.set_tenant(Tenant(path="new", weight=0)),
        lambda tree: tree.set_tenant(Tenant(path="a", quota={"gpu": -1})),
        lambda tree: tree.set_tenant(Tenant(path="new/below", guarantee={"gpu": -1})),
        lambda tree: tree.use("a", {"gpu": -1}),
        lambda tree: tree.push("c9", "new", {"gpu": -1}, 1),
        lambda tree: tree.give_back("a", {"gpu": 3}),
        lambda tree: tree.give_back("new", {"gpu": 1}),
    ],
)
def test_what_is_refused_leaves_the_tree_as_it_was(mistake: Callable[[FairTree], None]):
    tree = tree_of(8, Tenant(path="a", weight=2, quota={"gpu": 4}, guarantee={"gpu": 1}))
    tree.use("a", {"gpu": 2})
    tree.push("c0", "a", GPU, 1)
    tree.push("c1", "b/x", GPU, 1)
    before, order = tree.report(), tree.order()
    with pytest.raises(HalError):
        mistake(tree)
    assert tree.report() == before
    assert tree.order() == order


def test_a_guarantee_above_all_there_is_goes_first_and_keeps_nothing_idle():
    tree = tree_of(8, Tenant(path="a", guarantee={"gpu": 1000}))
    for number in range(3):
        tree.push(f"a#{number}", "a", GPU, 1)
        tree.push(f"b#{number}", "b", GPU, 1)
    assert served(tree, 8) == ["a", "a", "a", "b", "b", "b"]
    assert not tree.is_borrowing("a", GPU)
    assert tree.is_borrowing("b", GPU)


def test_guarantees_that_are_more_than_all_together_share_by_weight():
    everything = {"gpu": 8}
    tree = tree_of(8, Tenant(path="a", weight=3, guarantee=everything), Tenant(path="b", guarantee=everything))
    for number in range(8):
        tree.push(f"a#{number}", "a", GPU, 1)
        tree.push(f"b#{number}", "b", GPU, 1)
    assert sorted(served(tree, 8)) == ["a"] * 6 + ["b"] * 2


def test_a_quota_above_is_stronger_than_a_guarantee_below():
    tree = tree_of(8, Tenant(path="org", quota={"gpu": 2}), Tenant(path="org/team", guarantee={"gpu": 5}))
    for number in range(4):
        tree.push(f"org/team#{number}", "org/team", GPU, 1)
        tree.push(f"other#{number}", "other", GPU, 1)
    assert served(tree, 8) == ["org/team", "org/team", "other", "other", "other", "other"]


def test_what_is_promised_of_a_resource_that_is_not_there_promises_nothing():
    tree = tree_of(8, Tenant(path="a", guarantee={"dpu": 4}, quota={"dpu": 0}))
    tree.push("a#0", "a", GPU, 1)
    tree.push("b#0", "b", GPU, 1)
    assert served(tree, 8) == ["a", "b"]  # by name: nobody has anything
    assert tree.over_share("a") == Fraction(1, 4)
    assert tree.verdict("a", {"dpu": 1}) is not None


@settings(max_examples=examples(30), deadline=None)
@given(
    weights=st.lists(st.integers(1, 10**30), min_size=2, max_size=4),
    total=st.integers(1, 10**30),
    amount=st.integers(1, 10**30),
)
def test_weights_and_amounts_of_any_size_are_compared_exactly(weights: list[int], total: int, amount: int):
    # One resource, nobody below anybody: who is next has the lowest ratio by weight, ties by name.
    tree = tree_of(total, *(Tenant(path=f"t{n}", weight=weight) for n, weight in enumerate(weights)))
    uses = [0] * len(weights)
    for n in range(len(weights)):
        for number in range(6):
            tree.push(f"t{n}#{number}", f"t{n}", {"gpu": amount}, 1)
    for _ in range(6):
        ratios = [Fraction((use << 64) // total, weight) for use, weight in zip(uses, weights, strict=True)]
        wanted = min(range(len(weights)), key=lambda n: (ratios[n], n))
        found = tree.next(lambda group: True)
        assert found is not None
        assert found.partition("#")[0] == f"t{wanted}"
        tree.use(f"t{wanted}", {"gpu": amount})
        tree.remove(found)
        uses[wanted] += amount
