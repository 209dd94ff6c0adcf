"""Tables of the reference that tell what the code decides say the same as the code."""

from __future__ import annotations

import re
from pathlib import Path

from hal.broker.lifecycle import NEXT
from hal.cli.options import VERBS
from hal.cli.options import parser as parser_of
from hal.model.claim import Claim, Constraint, Gang, Request
from hal.model.lease import LeaseState
from hal.model.tenant import Tenant

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
_WORD = re.compile(r"`([a-z]+)`")


def _rows(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table behind a heading, without its head."""
    text = (REFERENCE / page).read_text().partition(f"\n{heading}\n")[2]
    lines = text[text.index("\n|") + 1 :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_table_of_states_is_the_one_that_is_enforced():
    told = {
        LeaseState(_WORD.findall(state)[0]): frozenset(map(LeaseState, _WORD.findall(following)))
        for state, _, following in _rows("leases.md", "## States")
    }
    assert told == NEXT


def test_everything_that_a_claim_can_say_is_told():
    page = (REFERENCE / "claims.md").read_text()
    for shape in (Request, Constraint, Claim):
        for name in shape.__struct_fields__:
            assert f"`{name}`" in page or name in ("requests", "constraints", "gang"), name
    for name in Gang.__struct_fields__:
        assert f"`gang.{name}`" in page, name


def test_everything_that_can_be_said_about_a_tenant_is_told():
    page = (REFERENCE / "tenants.md").read_text()
    for name in Tenant.__struct_fields__[1:]:
        assert f"| `{name}` |" in page, name


def test_every_verb_and_option_of_hal_is_told():
    page = (REFERENCE / "cli.md").read_text()
    commands = next(action for action in parser_of(everything=True)._actions if action.dest == "verb").choices
    for verb in VERBS:
        assert f"`{verb}" in page, f"docs/reference/cli.md does not speak of hal {verb}"
        for action in commands[verb]._actions:
            for option in action.option_strings:
                if option.startswith("--") and option != "--help":
                    assert f"`{option}" in page, f"docs/reference/cli.md does not speak of hal {verb} {option}"
