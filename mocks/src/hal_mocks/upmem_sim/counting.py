"""Let a program count its instructions: one addition to a register at the head of each straight piece of code.

The register is one that the compiler leaves alone, and ``lea`` adds without touching the flags, so the program does
not notice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from hal_mocks.upmem_sim.costs import instructions

REGISTER = "r15"
SECTION = ".hal.instructions"
"""The section in which an object says how many instructions its code has."""

_SECTION = re.compile(r"\.(text|data|bss|section|pushsection|popsection|previous)\b(.*)")
_STATEMENT = re.compile(r"(?:lock\s+|rep[nz]?[ez]?\s+|notrack\s+)*([a-z][a-z0-9]*)\s*(.*)")
_ENDS = ("j", "ret", "call", "ud2")


def count_instructions(assembly: str) -> tuple[str, int]:
    """Return the assembly with its counting added, and how many of the unit's instructions it has (an estimate)."""
    lines = assembly.split("\n")
    total = 0
    for head, weight, size in list(_blocks(lines)):
        lines[head] = f"\tleaq\t{weight}(%{REGISTER}), %{REGISTER}\n{lines[head]}"
        total += size
    lines.append(f'\t.section\t{SECTION},"",@progbits\n\t.long\t{total}\n')
    return "\n".join(lines), total


def _blocks(lines: list[str]) -> Iterator[tuple[int, int, int]]:
    """Yield for each straight piece its first line, its weight when it runs, and its length in the unit's memory."""
    in_text = True
    head, weight, size = -1, 0, 0
    for number, line in enumerate(lines):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        ends = False
        section = _SECTION.match(text)
        if section:
            in_text = section[1] == "text" or (section[1] == "section" and section[2].strip().startswith(".text"))
            ends = True
        elif text.endswith(":"):
            ends = True
        elif text[0] != "." and in_text:
            statement = _STATEMENT.match(text)
            if statement:
                if head < 0:
                    head = number
                cost = instructions(statement[1], statement[2])
                weight += cost
                size += min(cost, 4)  # a routine that is called is in memory once, not at each call
                ends = statement[1].startswith(_ENDS)
        if ends and head >= 0:
            if weight:
                yield head, weight, size
            head, weight, size = -1, 0, 0
    if head >= 0 and weight:
        yield head, weight, size
