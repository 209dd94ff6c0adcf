"""What an opened region can measure: the worst of its modules, since the region is as well as the worst of them."""

from __future__ import annotations

from collections.abc import Sequence

from hal.interfaces.deadline import Deadline
from hal.model.attributes import Attribute, known
from hal_pmem.enrichment import HEALTH_NAMES, module_facts, why_silent
from hal_pmem.tools import Tools

_ORDER = ("ok", "non-critical", "critical", "fatal")


def region_telemetry(tools: Tools, modules: Sequence[str], deadline: Deadline) -> dict[str, Attribute]:
    """Return the health of modules by their kernel names, the worst of each, or why there is none."""
    answers = tools.listings(("ndctl",), deadline)
    told = module_facts(answers)
    silent = why_silent(answers, "ndctl")
    found: dict[str, Attribute] = {}
    for name in HEALTH_NAMES:
        facts = [told[module][name] for module in modules if name in told.get(module, {})]
        values = [fact.value for fact in facts if fact.known]
        if not values:
            found[name] = facts[0] if facts else silent
        elif name == "health_state":
            found[name] = known(max((str(value) for value in values), key=_ORDER.index), facts[0].source)
        else:
            numbers = [value for value in values if isinstance(value, int | float)]
            worst = min(numbers) if name == "spares_percent" else max(numbers)
            found[name] = known(worst, facts[0].source)
    return found
