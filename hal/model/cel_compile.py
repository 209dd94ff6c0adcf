"""From the tree of a CEL expression to closures: types are checked where they are known, names resolved once.

A closure takes the frame of one evaluation: the values of the variables at 0, the meter at 1, then what macros bind.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NoReturn

from hal.model import cel_operators as ops
from hal.model.cel_device import ALLOW_MULTIPLE, FIELDS, Path
from hal.model.cel_functions import GLOBALS, METHODS, Function
from hal.model.cel_macros import MACROS, Body
from hal.model.cel_parse import DEEPEST, refuse
from hal.model.cel_text import pattern
from hal.model.cel_tree import Node, chain, children_at, literal, literal_text, nearest, plain
from hal.model.cel_values import Fault

Frame = list[Any]
Run = Callable[[Frame], Any]
_COMPARABLE = frozenset({"int", "double", "string", "bytes", "bool"})
_SPACES = ("cel", "optional", "sets")
_NUMBERS = {"int", "double"}


class Code:
    """A compiled expression: ``run``, the static ``type`` of its value (``dyn``: not known), where it stands."""

    __slots__ = ("begin", "end", "run", "size", "type")

    def __init__(self, run: Run, kind: str, node: Node, size: int = 1) -> None:
        self.run = run
        self.type = kind
        self.size = size
        self.begin: int = getattr(node.meta, "start_pos", 0)
        self.end: int = getattr(node.meta, "end_pos", 0)


class Compiler:
    """Compiles one expression; ``paths`` are the variables of the device that it reads, in the frame's order."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.paths: list[Path] = []
        self.slots = 2
        self.scope: dict[str, tuple[int, str]] = {}

    # --- what the rest of the room calls

    def conjuncts(self, tree: Node) -> list[Code]:
        """Compile the operands of the outermost ``&&``; each must be able to be true."""
        codes = [self.compile(node, 0) for node in chain(plain(tree), "conditionaland")]
        for code in codes:
            self.expect(code, "bool", "a selector")
        return codes

    def compile(self, tree: Node, depth: int) -> Code:
        """Compile any node."""
        node = plain(tree)
        if depth > DEEPEST:
            self.refuse(node, "nested too deeply", "split the expression")
        handler = getattr(self, f"_{node.data}", None)
        if handler is None:
            self.refuse(node, f"{node.data} is not supported in a selector")
        code: Code = handler(node, depth + 1)
        return code

    def refuse(self, node: Node, what: str, hint: str | None = None) -> NoReturn:
        """Refuse the expression at a node."""
        refuse(self.text, getattr(getattr(node, "meta", node), "start_pos", 0), what, hint)

    def expect(self, code: Code, kind: str, where: str) -> None:
        """Refuse a part whose type is known and wrong."""
        if code.type not in (kind, "dyn"):
            refuse(self.text, code.begin, f"{where} must be {kind}, and this is {code.type}", _HINTS.get(code.type))

    # --- logic

    def _expr(self, node: Node, depth: int) -> Code:
        test, yes, no = (self.compile(child, depth) for child in node.children)
        self.expect(test, "bool", "the condition of ?:")
        kind = yes.type if yes.type == no.type else "dyn"
        return self._made(ops.choice(test.run, yes.run, no.run), kind, node, test, yes, no)

    def _conditionalor(self, node: Node, depth: int) -> Code:
        return self._logic(node, depth, "||", True)

    def _conditionaland(self, node: Node, depth: int) -> Code:
        return self._logic(node, depth, "&&", False)

    def _logic(self, node: Node, depth: int, sign: str, decisive: bool) -> Code:
        codes = [self.compile(child, depth) for child in chain(node, node.data)]
        for code in codes:
            self.expect(code, "bool", f"an operand of {sign}")
        return self._made(ops.logic([code.run for code in codes], decisive, sign), "bool", node, *codes)

    def _unary(self, node: Node, depth: int) -> Code:
        sign, operand = node.children
        code = self.compile(operand, depth)
        if sign.data == "unary_not":
            self.expect(code, "bool", "an operand of !")
            return self._made(ops.negation(code.run), "bool", node, code)
        if code.type not in ("int", "double", "dyn"):
            self.refuse(node, f"{code.type} has no sign", _HINTS.get(code.type))
        return self._made(ops.negative(code.run), code.type, node, code)

    def _relation(self, node: Node, depth: int) -> Code:
        head, right = node.children
        if head.data == "relation_in":
            presence = self._presence(head.children[0], right, node)
            if presence is not None:
                return presence
        one, other = self.compile(head.children[0], depth), self.compile(right, depth)
        types = {one.type, other.type}
        sign = ops.SIGNS[head.data]
        if head.data == "relation_in":
            if other.type not in ("list", "map", "dyn"):
                self.refuse(node, f"in looks into lists and maps, and this is {other.type}", _HINTS.get(other.type))
        elif "dyn" not in types and len(types) > 1 and not types <= _NUMBERS:
            self.refuse(node, f"{one.type} {sign} {other.type} is never true", _HINTS.get("quantity", ""))
        elif head.data not in ("relation_eq", "relation_ne") and types - _COMPARABLE - {"dyn"}:
            kind = min(types - _COMPARABLE - {"dyn"})
            self.refuse(node, f"{kind} has no {sign}", _HINTS.get(kind))
        return self._made(ops.RELATIONS[head.data](one.run, other.run), "bool", node, one, other)

    def _addition(self, node: Node, depth: int) -> Code:
        return self._arithmetic(node, depth)

    def _multiplication(self, node: Node, depth: int) -> Code:
        return self._arithmetic(node, depth)

    def _arithmetic(self, node: Node, depth: int) -> Code:
        operands: list[tuple[str, Node, Node]] = []
        first = node
        while first.data == node.data and len(first.children) == 2:
            head, right = first.children
            operands.append((head.data, right, first))
            first = plain(head.children[0])
        code = self.compile(first, depth)
        kind, codes, steps = code.type, [code], []
        for name, right, whole in reversed(operands):
            other = self.compile(right, depth)
            types = {kind, other.type}
            if "dyn" not in types and (len(types) > 1 or not types <= ops.ADDABLE[name]):
                self.refuse(whole, f"no such overload: {kind} {ops.SIGNS[name]} {other.type}", _HINTS.get(kind))
            kind = kind if len(types) == 1 else "dyn"
            codes.append(other)
            steps.append((name, other.run))
        return self._made(ops.arithmetic(code.run, steps), kind, node, *codes)

    # --- variables and members

    def _ident(self, node: Node, depth: int) -> Code:
        name = str(node.children[0])
        if name in self.scope:
            slot, kind = self.scope[name]
            return Code(operator.itemgetter(slot), kind, node)
        if name == "device":
            return self._variable((), node)
        if name in ops.TYPES:
            return Code(ops.constant(name), "type", node)
        self.refuse(node, f"undeclared reference to {name!r}", nearest(name, ["device", *self.scope]))

    def _dot_ident(self, node: Node, depth: int) -> Code:
        return self._ident(node, depth)

    def _variable(self, path: Path, node: Node) -> Code:
        position = self._position(path)
        if len(path) == 3:
            section, kind = ("attribute", "dyn") if path[0] == "attributes" else ("capacity", "quantity")
            return Code(ops.variable(position, f"no {section} {path[2]!r} in {path[1]!r}"), kind, node)
        kind = {"driver": "string", ALLOW_MULTIPLE: "bool"}.get(path[0] if len(path) == 1 else "", "map")
        return Code(ops.variable(position, ""), kind, node)

    def _position(self, path: Path) -> int:
        if path not in self.paths:
            self.paths.append(path)
        return self.paths.index(path)

    def _path(self, tree: Node) -> Path | None:
        """Return which variable of the device a node is, if its names are all written out."""
        names: list[str] = []
        node = plain(tree)
        for _ in range(3):
            if node.data not in ("member_dot", "member_index"):
                break
            name = str(node.children[1]) if node.data == "member_dot" else literal_text(node.children[1])
            if name is None:
                return None
            names.append(name)
            node = plain(node.children[0])
        if node.data not in ("ident", "dot_ident") or str(node.children[0]) != "device" or "device" in self.scope:
            return None
        path = tuple(reversed(names))
        if path and path[0] not in FIELDS:
            self.refuse(tree, f"device has no field {path[0]!r}", nearest(path[0], FIELDS))
        if len(path) > 1 and path[0] not in ("attributes", "capacity"):
            self.refuse(tree, f"device.{path[0]} has no fields")
        return path

    def _presence(self, left: Node, right: Node, node: Node) -> Code | None:
        name, path = literal_text(left), self._path(right)
        if name is None or path is None or not path or path[0] not in ("attributes", "capacity") or len(path) > 2:
            return None
        position = self._position((*path, name))
        return Code(ops.presence(position), "bool", node)

    def _member_dot(self, node: Node, depth: int) -> Code:
        path = self._path(node)
        if path is not None:
            return self._variable(path, node)
        inner = self.compile(node.children[0], depth)
        if inner.type not in ("map", "optional", "dyn"):
            self.refuse(node, f"{inner.type} has no field {str(node.children[1])!r}", _HINTS.get(inner.type))
        return self._made(ops.member(inner.run, ops.constant(str(node.children[1]))), "dyn", node, inner)

    def _member_index(self, node: Node, depth: int) -> Code:
        path = self._path(node)
        if path is not None:
            return self._variable(path, node)
        inner, index = self.compile(node.children[0], depth), self.compile(node.children[1], depth)
        if inner.type not in ("map", "list", "optional", "dyn"):
            self.refuse(node, f"{inner.type} has no [ ]", _HINTS.get(inner.type))
        return self._made(ops.member(inner.run, index.run), "dyn", node, inner, index)

    def _member_optional_dot(self, node: Node, depth: int) -> Code:
        return self._optional_member(node, ops.constant(str(node.children[1])), str(node.children[1]), depth)

    def _member_optional_index(self, node: Node, depth: int) -> Code:
        index = self.compile(node.children[1], depth)
        return self._optional_member(node, index.run, literal_text(node.children[1]), depth)

    def _optional_member(self, node: Node, name: Run, written: str | None, depth: int) -> Code:
        above = self._path(node.children[0])
        if above and len(above) == 2 and written is not None:
            return Code(ops.optional_variable(self._position((*above, written))), "optional", node)
        inner = self.compile(node.children[0], depth)
        return self._made(ops.optional_member(inner.run, name), "optional", node, inner)

    # --- calls

    def _ident_arg(self, node: Node, depth: int) -> Code:
        name = str(node.children[0])
        arguments = children_at(node, 1)
        if name == "has":
            return self._has(node, arguments, depth)
        if name == "dyn" and len(arguments) == 1:
            code = self.compile(arguments[0], depth)
            return self._made(code.run, "dyn", node, code)
        if name == "matches":
            return self._called(node, "matches", METHODS["matches"], arguments, depth, 1)
        if name not in GLOBALS or "." in name:
            self.refuse(node, f"there is no function {name!r}", nearest(name, GLOBALS))
        return self._called(node, name, GLOBALS[name], arguments, depth, 0)

    def _member_dot_arg(self, node: Node, depth: int) -> Code:
        name = str(node.children[1])
        arguments = children_at(node, 2)
        space = plain(node.children[0])
        if space.data == "ident" and str(space.children[0]) in _SPACES and str(space.children[0]) not in self.scope:
            whole = f"{space.children[0]}.{name}"
            if whole == "cel.bind":
                return self._bind(node, arguments, depth)
            if whole not in GLOBALS:
                self.refuse(node, f"there is no function {whole!r}", nearest(whole, GLOBALS))
            return self._called(node, whole, GLOBALS[whole], arguments, depth, 0)
        if name in MACROS:
            return self._macro(node, name, arguments, depth)
        if name not in METHODS:
            self.refuse(node, f"there is no function {name!r}", nearest(name, (*METHODS, *MACROS)))
        return self._called(node, name, METHODS[name], [node.children[0], *arguments], depth, 1)

    def _called(
        self, node: Node, name: str, function: Function, arguments: list[Node], depth: int, receivers: int
    ) -> Code:
        count = len(arguments) - receivers
        if not function.least <= count <= function.most:
            wanted = f"{function.least}" if function.least == function.most else f"{function.least} or {function.most}"
            self.refuse(node, f"{name} takes {wanted} arguments, not {count}")
        codes = [self.compile(argument, depth) for argument in arguments]
        if receivers and function.receivers and codes[0].type not in (*function.receivers, "dyn"):
            self.refuse(
                node, f"{codes[0].type} has no {name}()", f"it is of {' and '.join(sorted(function.receivers))}"
            )
        made = self._made_of_literals(node, name, arguments)
        if made is not None:
            return Code(ops.constant(made), function.result, node)
        return self._made(ops.call(function.call, [code.run for code in codes]), function.result, node, *codes)

    def _made_of_literals(self, node: Node, name: str, arguments: list[Node]) -> object:
        """Return a quantity or a version that is written out; wrongly written is the writer's mistake, no device's."""
        try:
            if name in ("quantity", "semver") and len(arguments) == 1:
                text = literal_text(arguments[0])
                return None if text is None else GLOBALS[name].call(None, text)
            if name in ("matches", "find", "findAll"):
                expression = literal_text(arguments[1])
                if expression is not None:
                    pattern(expression)
        except Fault as fault:
            self.refuse(node, str(fault), {"quantity": 'as in quantity("10Gi")'}.get(name))
        return None

    def _has(self, node: Node, arguments: list[Node], depth: int) -> Code:
        inner = plain(arguments[0]) if len(arguments) == 1 else None
        if inner is None or inner.data not in ("member_dot", "member_optional_dot"):
            self.refuse(node, "has() takes a field", 'as in has(device.attributes["gpu.nvidia.com"].profile)')
        path = self._path(inner)
        if path is not None and len(path) == 3:
            return Code(ops.presence(self._position(path)), "bool", node)
        if path is not None:
            return Code(ops.constant(True), "bool", node)
        code = self.compile(inner.children[0], depth)
        return self._made(ops.has_member(code.run, str(inner.children[1])), "bool", node, code)

    def _bind(self, node: Node, arguments: list[Node], depth: int) -> Code:
        if len(arguments) != 3 or plain(arguments[0]).data != "ident":
            self.refuse(node, "cel.bind takes a name, its value, and an expression", "cel.bind(x, 1 + 1, x == 2)")
        value = self.compile(arguments[1], depth)
        body = self.bound(arguments[0], arguments[2], depth, value.type)
        return self._made(ops.binding(body.slot, value.run, body.code.run), body.code.type, node, value, body.code)

    def _macro(self, node: Node, name: str, arguments: list[Node], depth: int) -> Code:
        macro = MACROS[name]
        if len(arguments) not in macro.counts or plain(arguments[0]).data != "ident":
            self.refuse(node, f"{name} takes a name and an expression", f"as in list.{name}(x, x > 0)")
        subject = self.compile(node.children[0], depth)
        if subject.type not in (*macro.subjects, "dyn"):
            self.refuse(node, f"{subject.type} has no {name}()", f"it is of {' and '.join(macro.subjects)}")
        bodies = [self.bound(arguments[0], argument, depth, "dyn") for argument in arguments[1:]]
        if macro.logical:
            self.expect(bodies[0].code, "bool", f"the expression of {name}")
        run = macro.build(subject.run, [Body(body.slot, body.code.run, body.code.size) for body in bodies])
        return self._made(run, macro.result, node, subject, *(body.code for body in bodies))

    def bound(self, variable: Node, body: Node, depth: int, kind: str) -> _Bound:
        """Compile an expression in which a name is bound, in a slot of its own."""
        name = str(plain(variable).children[0])
        slot, self.slots = self.slots, self.slots + 1
        outer = dict(self.scope)
        self.scope[name] = (slot, kind)
        try:
            return _Bound(slot, self.compile(body, depth))
        finally:
            self.scope = outer

    # --- literals

    def _literal(self, node: Node, depth: int) -> Code:
        try:
            value, kind = literal(node.children[0])
        except (Fault, ValueError) as error:
            self.refuse(node, str(error))
        return Code(ops.constant(value), kind, node)

    def _list_lit(self, node: Node, depth: int) -> Code:
        codes = [self.compile(child, depth) for child in children_at(node, 0)]
        return self._made(ops.listing([code.run for code in codes]), "list", node, *codes)

    def _map_lit(self, node: Node, depth: int) -> Code:
        parts = list(node.children[0].children) if node.children else []
        codes = [self.compile(child, depth) for child in parts]
        runs = [code.run for code in codes]
        return self._made(ops.mapping(runs[::2], runs[1::2]), "map", node, *codes)

    def _made(self, run: Run, kind: str, node: Node, *parts: Code) -> Code:
        return Code(run, kind, node, 1 + sum(part.size for part in parts))


class _Bound:
    __slots__ = ("code", "slot")

    def __init__(self, slot: int, code: Code) -> None:
        self.slot = slot
        self.code = code


_HINTS = {
    "quantity": 'compare quantities by .compareTo(quantity("10Gi")) >= 0, or isGreaterThan, isLessThan',
    "semver": 'compare versions by .compareTo(semver("9.0.0")) >= 0, or isGreaterThan, isLessThan',
    "optional": "take its value by .orValue(…)",
}
