"""Looking at the tree of a CEL expression: past the levels that say nothing, along chains, at literals."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any

from hal.model.cel_functions import LARGEST
from hal.model.cel_values import Fault

Node = Any
"""A ``lark.Tree``: ``data`` names the rule, ``children`` are nodes and tokens, ``meta`` is where it stands."""
_THROUGH = frozenset(
    {
        *("expr", "conditionalor", "conditionaland", "relation", "addition"),
        *("multiplication", "unary", "member", "primary", "paren_expr"),
    }
)


def plain(tree: Node) -> Node:
    """Return the first node below that says something: most of the grammar's levels have one child."""
    while tree.data in _THROUGH and len(tree.children) == 1:
        tree = tree.children[0]
    return tree


def chain(node: Node, data: str) -> list[Node]:
    """Return the operands of ``a && b && c``, however long it is, without going down."""
    found: list[Node] = []
    node = plain(node)
    while node.data == data and len(node.children) == 2:
        found.append(node.children[1])
        node = plain(node.children[0])
    found.append(node)
    return found[::-1]


def children_at(node: Node, first: int) -> list[Node]:
    """Return the nodes of the list that may stand there: arguments, or elements."""
    return list(node.children[first].children) if len(node.children) > first else []


def literal_text(tree: Node) -> str | None:
    """Return the text that a node writes out, or None for anything else."""
    node = plain(tree)
    if node.data != "literal" or node.children[0].type not in ("STRING_LIT", "MLSTRING_LIT"):
        return None
    value, _ = literal(node.children[0])
    return value if isinstance(value, str) else None


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that was perhaps meant."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"{found[0]}?" if found else None


def literal(token: Any) -> tuple[Any, str]:
    """Return the value of a literal and its type; raises :class:`Fault` or ValueError for one out of range."""
    from celpy.evaluation import celbytes, celstr

    text = str(token)
    match token.type:
        case "STRING_LIT" | "MLSTRING_LIT":
            return str(celstr(token)), "string"
        case "BYTES_LIT":
            return bytes(celbytes(token)), "bytes"
        case "BOOL_LIT":
            return text == "true", "bool"
        case "NULL_LIT":
            return None, "null_type"
        case "FLOAT_LIT":
            value = float(text)
            if not math.isfinite(value):
                raise Fault(f"{text} is too large a number")
            return value, "double"
        case _:
            digits = text.rstrip("uU")
            number = int(digits, 16 if "0x" in digits[:3].lower() else 10) if len(digits) < 24 else LARGEST + 2
            if not -LARGEST - 1 <= number <= LARGEST:
                raise Fault(f"{text[:24]} does not fit into 64 bits")
            return number, "int"
