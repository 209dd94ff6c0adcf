"""How many of the unit's instructions stand for one of the host's.

The unit adds 32-bit integers in one instruction; what it has none for, a routine of its library does. What a routine
takes is derived from the throughput that the PrIM study measured at 350 MHz (arXiv 2105.03814, figure 4): its loop
spends 5 instructions besides the operation. So these weights agree with the study by construction; what follows from
them (knees, mixes, DMA beside them) does not.
"""

from __future__ import annotations

import re

_CLOCK_MHZ = 350.0
_LOOP_INSTRUCTIONS = 5


def _routine(million_operations_per_second: float) -> int:
    return round(_CLOCK_MHZ / million_operations_per_second) - _LOOP_INSTRUCTIONS


MUL32, MUL64 = _routine(10.27), _routine(2.56)
DIV32, DIV64 = _routine(11.27), _routine(1.40)
ADD_FLOAT, ADD_DOUBLE = _routine(4.91), _routine(3.32)
MUL_FLOAT, MUL_DOUBLE = _routine(1.91), _routine(0.53)
DIV_FLOAT, DIV_DOUBLE = _routine(0.34), _routine(0.16)
CONVERSION = 30
"""Between integers and floats: not measured by the study, an estimate from the routine's length."""
COMPARISON = 25
"""Of floats: an estimate as well."""

_FREE = frozenset(("nop", "nopw", "nopl", "endbr64", "cltq", "cltd", "cqto", "cwtl", "leave", "rep", "cld", "ud2"))
_WIDE = re.compile(r"%r(?:[abcd]x|[sd]i|[sb]p|8|9|1[0-5])\b")
_MEMORY = re.compile(r"-?[\w.+$@-]*\([^)]*\)|(?<![$\w%])[A-Za-z_.][\w.]*(?:[+-]\d+)?(?![\w(%])")
_MOVES = re.compile(r"mov(?:[bwlq]|[sz][bwl][lqw]?|abs[lq]?|s[sd]|ap[sd]|up[sd]|dq[au]|d|lps|hps|lpd|hpd)?$")
_FLOATS = (
    (re.compile(r"(?:add|sub)ss$"), ADD_FLOAT),
    (re.compile(r"(?:add|sub)sd$"), ADD_DOUBLE),
    (re.compile(r"mulss$"), MUL_FLOAT),
    (re.compile(r"mulsd$"), MUL_DOUBLE),
    (re.compile(r"(?:div|sqrt)ss$"), DIV_FLOAT),
    (re.compile(r"(?:div|sqrt)sd$"), DIV_DOUBLE),
    (re.compile(r"cvt"), CONVERSION),
    (re.compile(r"u?comis[sd]$|(?:max|min)s[sd]$|cmp\w*s[sd]$"), COMPARISON),
)


def instructions(mnemonic: str, operands: str) -> int:
    """Return the unit's instructions for one of the host's, given in AT&T syntax."""
    if mnemonic in _FREE:
        return 0
    if mnemonic == "call" and "__tsan_" in operands:
        return 0
    if mnemonic[0] == "j" or mnemonic in ("call", "ret"):
        return 1
    for pattern, weight in _FLOATS:
        if pattern.match(mnemonic):
            return weight + bool(_MEMORY.search(operands))
    return _integer(mnemonic, operands)


def _integer(mnemonic: str, operands: str) -> int:
    wide = mnemonic[-1] == "q" or bool(_WIDE.search(re.sub(r"\([^)]*\)", "", operands)))
    memory = _MEMORY.search(operands)
    address = 1 if memory is not None and memory.group().count(",") >= 1 else 0
    if mnemonic.startswith(("imul", "mul")):
        return (MUL64 if wide else MUL32) + (1 + address if memory else 0)
    if mnemonic.startswith(("idiv", "div")):
        return (DIV64 if wide else DIV32) + (1 + address if memory else 0)
    if mnemonic.startswith("lea"):
        return 2 if memory is not None and memory.group().count(",") >= 2 and memory.group()[0] not in "(0" else 1
    if _MOVES.match(mnemonic):
        both = 2 if mnemonic in ("movaps", "movups", "movdqa", "movdqu", "movapd", "movupd") else 1
        return both + address
    base = 2 if wide and not mnemonic.startswith(("push", "pop")) else 1
    if mnemonic.startswith("cmov"):
        base += 1
    if memory is None:
        return base
    if mnemonic.startswith(("cmp", "test", "set")):
        return base + 1 + address
    target = operands.rstrip().endswith(memory.group())
    return base + (2 if target else 1) + address
