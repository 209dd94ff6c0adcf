"""The expression language of filters and claims: ``memory_bytes >= 80*GB and model.startswith("NVIDIA H100")``.

Python's syntax, parsed by :mod:`ast` and kept to a whitelist, compiled once into closures. Logic has three values, as
in SQL: an attribute that a device lacks makes a comparison *unknown*, ``unknown and False`` is False, ``unknown or
True`` is True, everything else that touches it stays unknown, and unknown does not match. Values of different types
(a text against a number) compare to unknown, never to an error: one odd device cannot break a query.

Names are attributes, then capacities, of a device; ``link.width`` and ``link_width`` are the same. ``id``, ``name``,
``kind``, ``driver``, ``parent``, ``node``, ``rack``, ``slot``, ``numa`` (= ``numa_node``), ``pci_address``,
``health``, ``presence`` and ``allocatable`` belong to every device.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Collection
from typing import NoReturn

from hal.errors import SelectorError
from hal.model.device import Device
from hal.model.ternary import (
    COMPARISONS,
    TEXT_TESTS,
    Compiled,
    arithmetic,
    comparison,
    conjunction_of,
    constant,
    disjunction_of,
    negation_of,
)
from hal.model.words import counted

LONGEST = 4096
DEEPEST = 50
UNITS: dict[str, int] = {
    **{name: 1 << (10 * power) for power, name in enumerate(("KiB", "MiB", "GiB", "TiB"), 1)},
    **{name: 10 ** (3 * power) for power, name in enumerate(("KB", "MB", "GB", "TB"), 1)},
}
COMMON: dict[str, Callable[[Device], object]] = {
    "id": lambda d: d.id,
    "name": lambda d: d.name,
    "kind": lambda d: d.kind.value,
    "driver": lambda d: d.driver,
    "parent": lambda d: d.parent,
    "node": lambda d: d.location.node,
    "rack": lambda d: d.location.rack,
    "slot": lambda d: d.location.slot,
    "numa_node": lambda d: d.location.numa_node if d.location.numa_node is not None else d.value("numa_node"),
    "pci_address": lambda d: d.location.pci_address,
    "health": lambda d: d.health.value,
    "presence": lambda d: d.presence.value,
    "allocatable": lambda d: d.allocatable,
}
_USUAL = """
    vendor model pci_vendor pci_device pci_class pci_driver link_speed_gts link_width link_max_speed_gts link_max_width
    serial firmware memory_bytes iommu_group uuid architecture compute_capability multiprocessors mig_mode node_guid
    netdev port_state link_layer rate_gbps board_id mode generation cores media persistence_domain set_cookie size_bytes
    dpus mram_bytes clock_hz mac speed_mbps operstate cpulist cpu_model
"""
USUAL: tuple[str, ...] = tuple(_USUAL.split())
TEXT_FUNCTIONS = ("startswith", "endswith", "contains", "matches")
FUNCTIONS = ("has", *TEXT_FUNCTIONS)
_ALIASES = {"numa": "numa_node"}
_MEMORY = 4096


class Selector:
    """A compiled expression. ``names`` are the attributes that it looks at; ``text`` is what was written.

    :meth:`matches` evaluates once for each distinct combination of the values of ``names``, so a thousand equal
    devices cost a thousand look-ups and one evaluation.
    """

    __slots__ = ("_evaluate", "_getters", "_seen", "names", "text")

    def __init__(self, text: str, names: tuple[str, ...], evaluate: Compiled) -> None:
        self.text = text
        self.names = names
        self._evaluate = evaluate
        self._getters = tuple(getter(name) for name in names)
        self._seen: dict[tuple[object, ...], bool] = {}

    def matches(self, device: Device) -> bool:
        """True if the expression is true of the device; unknown does not match."""
        # 1, 1.0 and True are one key of a dict but not one value here: the types belong to the key.
        values = [get(device) for get in self._getters]
        key = (*values, *[tuple(map(type, v)) if type(v) is tuple else type(v) for v in values])
        seen = self._seen.get(key)
        if seen is None:
            if len(self._seen) >= _MEMORY:
                self._seen.clear()
            seen = self._seen[key] = self._evaluate(device) is True
        return seen

    def answer(self, device: Device) -> bool | None:
        """Return True, False, or None for unknown."""
        value = self._evaluate(device)
        return value if isinstance(value, bool) else None

    def unknown_names(self, device: Device) -> tuple[str, ...]:
        """Return the attributes that the expression looks at and the device lacks."""
        return tuple(name for name, get in zip(self.names, self._getters, strict=True) if get(device) is None)

    def __repr__(self) -> str:
        return f"Selector({self.text!r})"


EVERYTHING = Selector("", (), lambda device: True)


def compile_selector(text: str, known: Collection[str] | None = None) -> Selector:
    """Compile an expression; the empty one matches everything.

    With ``known`` (the attribute names that occur in an inventory) a name that is neither known nor usual is an error
    that offers the nearest one. Raises :class:`~hal.errors.SelectorError` with the position of the mistake.
    """
    if not text.strip():
        return EVERYTHING
    if len(text) > LONGEST:
        raise SelectorError(f"the expression has {len(text)} characters, at most {LONGEST} are allowed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\\d" in a text is an odd escape, not a reason to speak
            tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError as error:
        _refuse(text, (error.offset or 1) - 1, error.msg or "does not parse", "write it like memory_bytes >= 80*GB")
    except (ValueError, RecursionError, MemoryError) as error:
        _refuse(text, 0, f"does not parse: {error}", "make it shorter and simpler")
    compiler = _Compiler(text.strip(), known)
    evaluate = compiler.compile(tree.body, 0)
    return Selector(text.strip(), tuple(sorted(compiler.names)), evaluate)


def getter(name: str) -> Callable[[Device], object]:
    """Return the function that reads one name from a device; None stands for absent."""
    common = COMMON.get(name)
    if common is not None:
        return common

    def read(device: Device) -> object:
        attribute = device.attributes.get(name)
        if attribute is not None and attribute.value is not None:
            return attribute.value
        return device.capacity.get(name)

    return read


def _refuse(text: str, position: int, what: str, hint: str | None = None) -> NoReturn:
    near = text.strip()[max(0, position) : max(0, position) + 24]
    raise SelectorError(f"{what}, at position {position + 1} of {text.strip()!r} (near {near!r})", hint=hint)


class _Compiler:
    def __init__(self, text: str, known: Collection[str] | None) -> None:
        self.text = text
        self.known = known
        self.names: set[str] = set()

    def refuse(self, node: ast.AST, what: str, hint: str | None = None) -> NoReturn:
        _refuse(self.text, getattr(node, "col_offset", 0), what, hint)

    def compile(self, node: ast.expr, depth: int) -> Compiled:
        if depth > DEEPEST:
            self.refuse(node, "nested too deeply", "split the expression")
        match node:
            case ast.BoolOp(op=op, values=values):
                parts = [self.compile(value, depth + 1) for value in values]
                return conjunction_of(parts) if isinstance(op, ast.And) else disjunction_of(parts)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return negation_of(self.compile(operand, depth + 1))
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
                factor = -1 if isinstance(sign, ast.USub) else 1
                return arithmetic(ast.Mult, constant(factor), self.compile(operand, depth + 1))
            case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() as op, right=right):
                return arithmetic(type(op), self.compile(left, depth + 1), self.compile(right, depth + 1))
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                return self._chain(node, left, ops, comparators, depth)
            case ast.Constant(value=bool() | int() | float() | str() as value):
                return constant(value)
            case ast.Tuple(elts=items) | ast.List(elts=items) | ast.Set(elts=items):
                members = tuple(self.compile(item, depth + 1) for item in items)
                return lambda device: tuple(member(device) for member in members)
            case ast.Name() | ast.Attribute():
                return self._name(node)
            case ast.Call():
                return self._call(node, depth)
        self.refuse(node, f"{type(node).__name__} is not allowed here", "allowed: comparisons, and/or/not, in, + - * /")

    def _chain(
        self, node: ast.expr, left: ast.expr, ops: list[ast.cmpop], comparators: list[ast.expr], depth: int
    ) -> Compiled:
        operands = [self.compile(operand, depth + 1) for operand in (left, *comparators)]
        links: list[Compiled] = []
        for op, first, second in zip(ops, operands, operands[1:], strict=False):
            compare = COMPARISONS.get(type(op))
            if compare is None:
                self.refuse(node, f"the operator {type(op).__name__} is not allowed", "use == and !=")
            links.append(comparison(compare, first, second))
        return links[0] if len(links) == 1 else conjunction_of(links)

    def _path(self, node: ast.expr) -> str:
        parts: list[str] = []
        inner = node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if not isinstance(inner, ast.Name):
            self.refuse(node, "only names have attributes")
        parts.append(inner.id)
        parts.reverse()
        if len(parts) > 1 and parts[0] in ("attributes", "capacity", "device"):
            parts = parts[1:]
        return _ALIASES.get("_".join(parts), "_".join(parts))

    def _name(self, node: ast.expr, check: bool = True) -> Compiled:
        name = self._path(node)
        if isinstance(node, ast.Name) and node.id in UNITS:
            return constant(UNITS[node.id])
        if check and self.known is not None and name not in COMMON and name not in USUAL and name not in self.known:
            candidates = {*COMMON, *USUAL, *self.known, *UNITS, *_ALIASES}
            self.refuse(node, f"nothing here has an attribute {name!r}", _nearest(name, candidates))
        self.names.add(name)
        return getter(name)

    def _call(self, node: ast.Call, depth: int) -> Compiled:
        if node.keywords:
            self.refuse(node, "arguments have no names here")
        arguments = list(node.args)
        if isinstance(node.func, ast.Attribute) and node.func.attr in TEXT_FUNCTIONS:
            function = node.func.attr
            arguments.insert(0, node.func.value)
        elif isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS:
            function = node.func.id
        else:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "?")
            self.refuse(node, f"there is no function {name!r}", _nearest(name, FUNCTIONS))
        wanted = 1 if function == "has" else 2
        if len(arguments) != wanted:
            self.refuse(node, f"{function} takes {counted(wanted, 'argument')}, not {len(arguments)}")
        if function == "has":
            if not isinstance(arguments[0], ast.Name | ast.Attribute):
                self.refuse(arguments[0], "has() takes the name of an attribute")
            read = self._name(arguments[0], check=False)
            return lambda device: read(device) is not None
        return self._text_function(node, function, arguments, depth)

    def _text_function(self, node: ast.Call, function: str, arguments: list[ast.expr], depth: int) -> Compiled:
        subject = self.compile(arguments[0], depth + 1)
        if function != "matches":
            return comparison(TEXT_TESTS[function], subject, self.compile(arguments[1], depth + 1))
        pattern = arguments[1]
        if not (isinstance(pattern, ast.Constant) and isinstance(pattern.value, str)):
            self.refuse(pattern, "matches() takes a pattern written out as a text")
        import re

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                search = re.compile(pattern.value).search
        except (re.error, RecursionError, OverflowError) as error:
            self.refuse(pattern, f"the pattern does not compile: {error}")

        def found(device: Device) -> object:
            value = subject(device)
            return search(value) is not None if isinstance(value, str) else None

        return found


def _nearest(name: str, candidates: Collection[str]) -> str | None:
    import difflib

    close = difflib.get_close_matches(name, sorted(candidates), n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else None
