from __future__ import annotations

import ast
import operator
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.errors import SelectorError
from hal.model.attributes import Absence, absent, known
from hal.model.device import Device, Location
from hal.model.health import Condition, Severity
from hal.model.kind import Kind
from hal.model.selector import compile_selector
from tests.budget import examples

GIB = 1 << 30


def gpu(**attributes: object) -> Device:
    facts = {name: known(value, "test") for name, value in attributes.items()}
    facts["serial"] = absent(Absence.PERMISSION, "test")
    return Device(
        id="GPU-1",
        kind=Kind.GPU,
        name="gpu0",
        driver="mock-gpu",
        location=Location(node="n1", rack="r1", numa_node=1),
        attributes=facts,
        capacity={"memory_bytes": 80 * GIB},
        allocatable=True,
    )


H100 = gpu(model="NVIDIA H100 80GB", link_width=16, vendor="nvidia", modes=("a", "b"), mig_mode=False)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "memory_bytes >= 80*GiB",
        "79 * GiB < memory_bytes < 81*GiB",
        "link.width == 16 and link_width == 16",
        'kind == "gpu" and node == "n1" and rack in ("r1", "r2") and numa == 1',
        'model.startswith("NVIDIA") and startswith(model, "NVIDIA")',
        'matches(model, "H[12]00")',
        '"H100" in model and contains(model, "H100") and "a" in modes',
        "has(model) and not has(serial) and not has(nonsense)",
        "not mig_mode",
        'health == "healthy"',
        "capacity.memory_bytes / 2 == 40*GiB",
        'serial == "x" or True',
    ],
)
def test_an_expression_that_is_true_matches(text):
    assert compile_selector(text).matches(H100)


@pytest.mark.parametrize(
    "text",
    [
        'serial == "x"',
        'serial != "x"',
        'not (serial == "x")',
        "serial",
        "nonsense > 1",
        "not (nonsense > 1)",
        "nonsense > 1 or False",
        "memory_bytes / 0 == 1",
        'memory_bytes > "80"',
        "mig_mode == 0",
        "model",
        "1",
    ],
)
def test_what_is_unknown_does_not_match(text):
    assert not compile_selector(text).matches(H100)
    assert compile_selector(text).answer(H100) is None


def test_a_sick_device_is_selected_by_its_health():
    condition = Condition(device="GPU-1", type="X", severity=Severity.FATAL, evidence="e", source="s")
    sick = Device(
        id="GPU-1", kind=Kind.GPU, name="gpu0", driver="d", location=Location(node="n"), conditions=(condition,)
    )
    selector = compile_selector('health == "failed"')
    assert selector.matches(sick)
    assert not selector.matches(H100)


def test_names_are_what_the_expression_looks_at():
    assert compile_selector("numa == 1 and link.width > 8 and GiB > 1").names == ("link_width", "numa_node")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("memory_bytes >=", "position"),
        ("memory_bytes = 3", "position"),
        ("open('x')", "no function 'open'"),
        ("startwith(model, 'x')", "did you mean startswith"),
        ("model.__class__()", "no function"),
        ("(lambda: 1)()", "no function"),
        ("[x for x in modes]", "not allowed"),
        ("model[0]", "not allowed"),
        ("2 ** 9", "not allowed"),
        ("model is None", "not allowed"),
        ("matches(model, '(')", "pattern"),
        ("matches(model, model)", "pattern"),
        ("has('x')", "name of an attribute"),
        ("startswith(model)", "2 arguments"),
        ("not " * 80 + "True", "deeply"),
        ("1" * 5000, "characters"),
        ("a\0b", "null bytes|parse"),
        ("(" * 1000, "position"),
    ],
)
def test_a_mistake_is_refused_with_its_place(text, words):
    with pytest.raises(SelectorError, match=words.replace("(", r"\(")):
        compile_selector(text)


def test_a_misspelt_attribute_is_offered_its_neighbour():
    with pytest.raises(SelectorError, match="did you mean memory_bytes"):
        compile_selector("memory_byts > 1", known={"memory_bytes"})
    assert compile_selector("odd_thing > 1", known={"odd_thing"}).names == ("odd_thing",)


def test_one_and_true_are_not_the_same_value():
    selector = compile_selector("link_width == 1")
    assert selector.matches(gpu(link_width=1))
    assert not selector.matches(gpu(link_width=True))
    assert selector.matches(gpu(link_width=1.0))


# --- any text at all, and agreement with an evaluator written the other way round

ATOMS = st.sampled_from(
    ["x", "y", "z", "numa", "1", "2", "0.5", "'a'", "'ab'", "True", "False", "KiB", "('a', 1)", "t"]
)
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "in", "not in"]), inner),
        st.tuples(inner, st.sampled_from(["and", "or", "+", "-", "*", "/"]), inner),
        inner.map(lambda text: ("not", text, "")),
        st.tuples(st.just("startswith"), inner, inner),
    ).map(lambda t: f"startswith({t[1]}, {t[2]})" if t[0] == "startswith" else f"({t[0]} {t[1]} {t[2]})"),
    max_leaves=12,
)
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([0.5, 1024.0]), st.sampled_from(["a", "ab", ""])
)


class Naive:
    """Interprets the tree afresh each time, with exceptions for unknown: nothing in common with the compiler."""

    class Unknown(Exception):
        pass

    def __init__(self, values):
        self.values = values

    def kleene(self, node):
        try:
            value = self.value(node)
        except Naive.Unknown:
            return None
        return value if isinstance(value, bool) else None

    def value(self, node):
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            value = {**self.values, "KiB": 1024}[node.id]
            if value is None:
                raise Naive.Unknown
            return value
        if isinstance(node, ast.Tuple):
            return tuple(self.value(item) for item in node.elts)
        if isinstance(node, ast.UnaryOp):
            answer = self.kleene(node.operand)
            if answer is None:
                raise Naive.Unknown
            return not answer
        if isinstance(node, ast.BoolOp):
            strong = isinstance(node.op, ast.Or)
            answers = [self.kleene(part) for part in node.values]
            if strong in answers:
                return strong
            if None in answers:
                raise Naive.Unknown
            return not strong
        if isinstance(node, ast.BinOp):
            left, right = self.number(node.left), self.number(node.right)
            work = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
            try:
                return work[type(node.op)](left, right)
            except ArithmeticError:
                raise Naive.Unknown from None
        if isinstance(node, ast.Call):
            left, right = (self.value(part) for part in node.args)
            if isinstance(left, str) and isinstance(right, str):
                return left.startswith(right)
            raise Naive.Unknown
        return self.compare(self.value(node.left), node.ops[0], self.value(node.comparators[0]))

    def number(self, node):
        value = self.value(node)
        if isinstance(value, bool | str | tuple):
            raise Naive.Unknown
        return value

    def sort(self, value):
        return {bool: "bool", int: "number", float: "number", str: "text", tuple: "tuple"}[type(value)]

    def same(self, left, right):
        if self.sort(left) != self.sort(right):
            return None
        if isinstance(left, tuple) and len(left) == len(right):
            answers = [self.same(a, b) for a, b in zip(left, right, strict=True)]
            return False if False in answers else None if None in answers else True
        return left == right

    def compare(self, left, op, right):
        if isinstance(op, ast.In | ast.NotIn):
            if isinstance(right, str) and isinstance(left, str):
                answer = left in right
            elif isinstance(right, tuple):
                answers = [self.same(left, item) for item in right]
                answer = True if True in answers else None if None in answers else False
            else:
                answer = None
            flip = isinstance(op, ast.NotIn)
        elif isinstance(op, ast.Eq | ast.NotEq):
            answer, flip = self.same(left, right), isinstance(op, ast.NotEq)
        else:
            if self.sort(left) != self.sort(right) or self.sort(left) not in ("number", "text"):
                raise Naive.Unknown
            names = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge}
            return names[type(op)](left, right)
        if answer is None:
            raise Naive.Unknown
        return answer != flip


@settings(max_examples=examples(150), deadline=None)
@given(text=EXPRESSIONS, x=VALUES, y=VALUES, z=VALUES)
def test_the_compiler_agrees_with_a_naive_interpreter(text, x, y, z):
    values = {"x": x, "y": y, "z": z}
    device = gpu(t=("a", 1), **{name: value for name, value in values.items() if value is not None})
    expected = Naive({**values, "numa": 1, "t": ("a", 1)}).kleene(ast.parse(text, mode="eval").body)
    selector = compile_selector(text)
    assert selector.answer(device) is expected
    assert selector.matches(device) is (expected is True)


PIECES = st.sampled_from([*"()[]{}.,'\"+-*/<>=!: ", " and ", " not ", " in ", "x", "1", "GiB", "has", "lambda", "é"])


@settings(max_examples=examples(150), deadline=None)
@given(text=st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=20).map("".join)))
def test_no_text_whatever_raises_anything_but_a_selector_error(text):
    with suppress(SelectorError):
        compile_selector(text).matches(H100)
