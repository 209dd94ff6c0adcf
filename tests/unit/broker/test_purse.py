"""However hard a claim is to decide, nobody waits long for it: what is not decided is said to be undecided."""

from __future__ import annotations

import random

import pytest

from hal.broker import command as c
from hal.broker.allocation import problem
from hal.broker.allocation.choice import Place, Refusal
from hal.broker.allocation.explain import explain
from hal.broker.allocation.problem import Budget
from hal.broker.allocation.view import allocate
from hal.model.claim import Claim, Constraint, Gang, Gather, Request
from hal.model.kind import Kind
from tests.unit.broker.floor import Floor
from tests.unit.broker.world import device, run, state_of

APART = tuple(Constraint(distinct=name) for name in "abc")
HERE = Constraint(same="node")


@pytest.fixture
def spent(monkeypatch):
    """The steps that are spent."""
    steps = []
    spend = Budget.spend

    def counted(self, amount=1):
        steps.append(amount)
        spend(self, amount)

    monkeypatch.setattr(Budget, "spend", counted)
    return steps


def different(nodes, gpus=16, values=8, seed=1):
    """Machines whose GPUs all differ, so that each is a problem of its own."""
    rng = random.Random(seed)
    return [
        device(f"n{n}/g{i}", node=f"n{n}", **{name: rng.randrange(values) for name in "abcd"})
        for n in range(nodes)
        for i in range(gpus)
    ]


def picky(name, requests=8, values=8, **fields):
    """A claim for GPUs that differ in everything: hard to find, and hard to rule out."""
    wanted = tuple(Request(kind=Kind.GPU, name=f"q{i}", where=f"d != {i % values}") for i in range(requests))
    return Claim(id=name, requests=wanted, constraints=(*APART, HERE), **fields)


def test_a_decision_searches_so_much_and_no_more_and_the_next_one_goes_on_from_there(spent):
    floor = Floor(different(40))
    answers = []
    while len(answers) < 50:
        spent.clear()
        answers.append(allocate(floor, picky("c")))
        assert sum(spent) <= problem.OF_A_DECISION + 4_000, "one small problem more may be ended"
        if answers[-1] is not None:
            break
    assert len(answers) > 2
    assert answers[:-1] == [None] * (len(answers) - 1), "never a no that is none"
    spent.clear()
    again = allocate(floor, picky("again"))
    assert type(again) is type(answers[-1])
    assert not spent
    truth = [allocate(Floor(one), picky("c")) for one in by_node(floor)]
    assert isinstance(answers[-1], Place) == any(isinstance(found, Place) for found in truth)


def by_node(floor):
    return [node.devices for node in floor.nodes]


def test_who_asks_for_something_simple_is_served_after_a_hard_search(spent):
    state = state_of(different(40))
    assert isinstance(run(state, c.ClaimDevices(claim=picky("hard"))), c.Undecided)
    hard = sum(spent)
    assert 0 < hard <= problem.OF_A_DECISION + 4_000
    simple = Claim(id="simple", requests=(Request(kind=Kind.GPU, count=2),), constraints=(HERE,))
    assert isinstance(run(state, c.ClaimDevices(claim=simple)), c.Granted)
    assert sum(spent) == hard


def test_all_that_one_command_decides_has_one_purse(spent, monkeypatch):
    monkeypatch.setattr(problem, "OF_A_COMMAND", 6_000)
    floor = Floor(different(40))
    with floor.purse:
        for number in range(4):
            assert allocate(floor, picky("c", requests=8 - number % 2)) is None
    assert sum(spent) <= 6_000 + 4 * 4_000
    spent.clear()
    with floor.purse:
        allocate(floor, picky("c"))
    assert spent, "the next command has its own"


def test_a_gang_that_is_hard_to_count_is_undecided_and_never_refused_for_that(spent):
    floor = Floor(different(30, gpus=12, values=7))
    wanted = picky("c", requests=6, values=7, replicas=4, gang=Gang(how=Gather.FEWEST))
    answers = []
    while len(answers) < 60 and (not answers or answers[-1] is None):
        spent.clear()
        answers.append(allocate(floor, wanted))
        assert sum(spent) <= problem.OF_A_DECISION + 4_000
    assert answers[-1] is not None, "in the end all have been counted"
    fits = sum(isinstance(allocate(Floor(one), picky("c", requests=6, values=7)), Place) for one in by_node(floor))
    if isinstance(answers[-1], Refusal):
        assert fits < 4
    else:
        assert len(answers[-1].choices) == 4


def test_an_explanation_has_one_purse_and_says_where_it_was_given_up(spent, monkeypatch):
    monkeypatch.setattr(problem, "OF_A_DECISION", 1_500)
    monkeypatch.setattr(problem, "OF_A_COMMAND", 3_000)
    state = state_of(different(40))
    told = explain(state, picky("c"))
    assert sum(spent) <= 3_000 + 2 * 4_000
    assert not told.decided
    assert "given up" in told.reason


def test_devices_over_many_nodes_cost_more_a_step():
    purse = problem.Purse()
    purse.begin()
    few, many = Budget(purse=purse), Budget(purse=purse)
    few.begin(16)
    few.spend()
    left = purse.left
    assert left == problem.OF_A_DECISION - 1
    many.begin(640)
    many.spend()
    assert left - purse.left == 11
