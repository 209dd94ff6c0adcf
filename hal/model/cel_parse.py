"""From the text of a CEL expression to its tree, by the grammar of cel-python with the optional syntax added."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from hal.errors import SelectorError

if TYPE_CHECKING:
    from lark import Lark, Tree

LONGEST = 10 * 1024
"""Kubernetes' limit on the length of a selector (CELSelectorExpressionMaxLength)."""
DEEPEST = 60
"""How deep an expression nests at the most."""
_SHOWN = 300
_OPTIONAL = """
member_optional_dot : member "." "?" IDENT
member_optional_index : member "[" "?" expr "]"
"""


def parse(text: str) -> Tree[Any]:
    """Return the tree; raises :class:`~hal.errors.SelectorError` with the position of the mistake."""
    from lark.exceptions import LarkError, UnexpectedInput

    if len(text) > LONGEST:
        raise SelectorError(f"the CEL expression has {len(text)} characters, at most {LONGEST} are allowed")
    if not text.strip():
        raise SelectorError("the CEL expression is empty", hint="true matches every device")
    _check_literals(text)
    try:
        return _parser().parse(text)
    except UnexpectedInput as error:
        position = getattr(error, "pos_in_stream", None)
        found = getattr(error, "token", None)
        at_end = position is None or position < 0 or getattr(found, "type", "") == "$END"
        refuse(text, len(text) if at_end else position or 0, "CEL syntax error", "is it complete? as in: a == b && c")
    except LarkError as error:
        refuse(text, 0, f"CEL syntax error: {error}")


def refuse(text: str, position: int, what: str, hint: str | None = None) -> NoReturn:
    """Raise the error for a mistake at a position (from 0)."""
    near = text[position : position + 24] or "the end"
    shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
    raise SelectorError(f"{what}, at position {position + 1} of {shown!r} (near {near!r})", during="compile", hint=hint)


@lru_cache(maxsize=1)
def _parser() -> Lark:
    # Here and not above: what never sees CEL does not pay for it (about 0.2 s).
    import re
    from importlib.resources import files

    from celpy.celparser import CELParser
    from lark import Lark

    grammar = files("celpy").joinpath("cel.lark").read_text()
    extended, changes = re.subn(
        r"(?m)^(member\s*:.*)$", r"\1 | member_optional_dot | member_optional_index", grammar, count=1
    )
    return Lark(
        extended + _OPTIONAL if changes else grammar,
        parser="lalr",
        start="expr",
        g_regex_flags=re.MULTILINE,
        lexer_callbacks={"IDENT": CELParser.ambiguous_literals},
        propagate_positions=True,
        maybe_placeholders=False,
        priority="invert",
    )


def _check_literals(text: str) -> None:
    """Refuse what the parser would take long over, before it sees it.

    That is a text literal without an end, on which the grammar's regular expression would backtrack exponentially, and
    nesting or signs beyond what the compiler takes.
    """
    at, end, depth, signs = 0, len(text), 0, 0
    while at < end:
        sign = text[at]
        depth += (sign in "([{") - (sign in ")]}")
        signs = signs + 1 if sign in "!-" else 0
        if depth > DEEPEST or signs > DEEPEST:
            refuse(text, at, "nested too deeply", "split the expression")
        if text.startswith("//", at):
            line = text.find("\n", at)
            at = end if line < 0 else line
            continue
        if sign not in "\"'":
            at += 1
            continue
        begin = at
        quote = sign * 3 if text.startswith(sign * 3, at) else sign
        at += len(quote)
        while not text.startswith(quote, at):
            if at >= end or (len(quote) == 1 and text[at] == "\n"):
                refuse(text, begin, "this text has no end", f"close it with {quote}")
            # A backslash takes the next character with it, in a raw text, too: so reads the grammar.
            at += 2 if text[at] == "\\" and not text.startswith("\n", at + 1) else 1
        at += len(quote)
