"""Give a program the unit's ``long``: 64 bits, beside pointers of 32.

The host's compiler has a mode with pointers of 32 bits in 64-bit registers (x32), but there ``long`` has 32. In a
preprocessed source every lone ``long`` becomes ``long long``, and a constant's ``L`` becomes ``LL``.
"""

from __future__ import annotations

import re

_TOKEN = re.compile(
    r"""
      (?P<line>^[ \t]*\#[^\n]*)
    | (?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    | (?P<number>\.?[0-9](?:[eEpP][+-]|[0-9A-Za-z_.])*)
    | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<space>\s+)
    | (?P<other>.)
    """,
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)
_SPECIFIERS = frozenset(
    ("long", "int", "unsigned", "signed", "__signed__", "const", "volatile", "static", "extern", "register", "_Complex")
)
_WHOLE = re.compile(r"0[xX][0-9A-Fa-f]+[uU]?|[0-9]+[uU]?")


def widen_longs(source: str) -> str:
    """Return a preprocessed source in which ``long`` has 64 bits for a compiler whose ``long`` has 32."""
    tokens = [(match.lastgroup, match.group()) for match in _TOKEN.finditer(source)]
    parts = [text for _, text in tokens]
    run: list[int] = []
    floating = False
    for at, (kind, text) in enumerate(tokens):
        if kind in ("space", "line"):
            continue
        if kind == "word" and text in _SPECIFIERS:
            if text == "long":
                run.append(at)
            continue
        floating = kind == "word" and text == "double"
        if len(run) == 1 and not floating:
            parts[run[0]] = "long long"
        run.clear()
        if kind == "number":
            parts[at] = _widen_constant(text)
    return "".join(parts)


def _widen_constant(text: str) -> str:
    digits = text.rstrip("uUlL")
    suffix = text[len(digits) :]
    if suffix.lower() in ("l", "ul", "lu") and _WHOLE.fullmatch(digits):
        return f"{digits}{'u' if 'u' in suffix.lower() else ''}ll"
    return text
