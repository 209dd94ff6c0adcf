"""What the solver is checked against: trying everything, on sets of device numbers. Shares no code with the solver."""

from __future__ import annotations

from itertools import combinations, permutations, product


def devices_of(mask):
    return frozenset(p for p in range(mask.bit_length()) if mask >> p & 1)


class Oracle:
    """A problem as sets. ``requests`` and ``rules`` may be left out one by one, and shared fate as a whole."""

    def __init__(self, problem):
        self.masks = [devices_of(mask) for mask in problem.masks]
        self.counts = list(problem.counts)
        self.rules = [
            (rule.bond.value, [devices_of(group) for group in rule.groups], rule.requests) for rule in problem.rules
        ]
        self.fate = [devices_of(mask) for mask in problem.fate]

    def feasible(self, requests=None, rules=None, fate=True, counts=None):
        """Is there any way at all?"""
        requests = range(len(self.masks)) if requests is None else sorted(requests)
        rules = range(len(self.rules)) if rules is None else sorted(rules)
        counts = self.counts if counts is None else counts
        return self._some(list(requests), [self.rules[k] for k in rules], fate, counts, {}, frozenset())

    def _some(self, requests, rules, fate, counts, chosen, taken):
        if not requests:
            return self.kept(chosen, rules)
        first, *others = requests
        for some in combinations(sorted(self.masks[first] - taken), counts[first]):
            mine = frozenset(some)
            if fate and self.fate and self.clash(taken | mine):
                continue
            if self._some(others, rules, fate, counts, {**chosen, first: mine}, taken | mine):
                return True
        return False

    def clash(self, devices):
        """Do two of them share their fate?"""
        return any(b in self.fate[a] or a in self.fate[b] for a, b in combinations(sorted(devices), 2))

    def kept(self, chosen, rules):
        """Are all the rules kept, over those of their requests that are there?"""
        ordered = []
        for bond, groups, concerned in rules:
            here = [i for i in concerned if i in chosen]
            together = frozenset().union(*[chosen[i] for i in here])
            if bond == "same" and together and not any(together <= group for group in groups):
                return False
            if bond == "distinct":
                homes = [[number for number, group in enumerate(groups) if d in group] for d in together]
                if not all(homes) or len({home[0] for home in homes}) < len(together):
                    return False
            if bond == "pairs" and together:
                ordered.append((groups, here))
        return not ordered or self._rows(chosen, ordered)

    def _rows(self, chosen, ordered):
        """Can the devices of each request be put in an order in which the n-th ones of every rule share a group?"""
        members = sorted({i for _, here in ordered for i in here})
        for orders in product(*[permutations(sorted(chosen[i])) for i in members]):
            row = dict(zip(members, orders, strict=True))
            if all(
                any(all(row[i][j] in group for i in here) for group in groups)
                for groups, here in ordered
                for j in range(len(row[here[0]]))
            ):
                return True
        return False

    def check_assignment(self, answer):
        """Assert that the answer keeps all that was asked, and says truly how."""
        chosen = {i: devices_of(mask) for i, mask in enumerate(answer.masks)}
        assert len(chosen) == len(self.masks)
        for i, mine in chosen.items():
            assert mine <= self.masks[i]
            assert len(mine) == self.counts[i]
        taken = frozenset().union(*chosen.values())
        assert len(taken) == sum(self.counts), "a device is given twice"
        assert not (self.fate and self.clash(taken))
        assert self.kept(chosen, self.rules)
        rows = iter(answer.pairs)
        for number, (bond, groups, concerned) in enumerate(self.rules):
            together = frozenset().union(*[chosen[i] for i in concerned])
            if bond == "same" and together:
                assert devices_of(answer.groups[number]) in groups
                assert together <= devices_of(answer.groups[number])
            else:
                assert answer.groups[number] == 0
            if bond == "pairs":
                told = [[devices_of(bit) for bit in row] for row in next(rows)]
                for column, i in enumerate(concerned):
                    assert sorted(min(row[column]) for row in told) == sorted(chosen[i])
                for row in told:
                    assert all(len(one) == 1 for one in row)
                    assert any(frozenset().union(*row) <= group for group in groups)
        assert next(rows, None) is None

    def check_conflict(self, answer):
        """Assert that what is named cannot be, that all of it is needed, and that the numbers are true."""
        requests, rules, fate = set(answer.requests), set(answer.rules), answer.fate
        assert not self.feasible(requests, rules, fate)
        for one in requests:
            assert self.feasible(requests - {one}, rules, fate), f"request {one} is not needed"
        for one in rules:
            assert self.feasible(requests, rules - {one}, fate), f"rule {one} is not needed"
        if fate:
            assert self.feasible(requests, rules, False), "shared fate is not needed"
        if not rules and not fate:
            assert answer.needed > answer.available, "numbers alone are the proof, and are not given"
        if answer.needed or answer.available:
            assert answer.needed > answer.available
            self._check_numbers(answer)

    def _check_numbers(self, answer):
        union = frozenset().union(*[self.masks[i] for i in answer.requests])
        wanted = sum(self.counts[i] for i in answer.requests)
        if not answer.rules:
            assert (answer.needed, answer.available) == (wanted, len(union))
            return
        assert len(answer.rules) == 1
        bond, groups, concerned = self.rules[answer.rules[0]]
        here = [i for i in concerned if i in answer.requests]
        union = frozenset().union(*[self.masks[i] for i in here])
        if bond == "pairs":
            assert answer.needed == self.counts[here[0]]
            for number in (answer.available, answer.available + 1):
                counts = [number if i in here else count for i, count in enumerate(self.counts)]
                assert self.feasible(here, answer.rules, False, counts) == (number == answer.available)
            return
        assert answer.needed == sum(self.counts[i] for i in here)
        if bond == "same":
            assert answer.available == max((len(group & union) for group in groups), default=0)
        else:
            assert answer.available == sum(1 for group in groups if group & union)
