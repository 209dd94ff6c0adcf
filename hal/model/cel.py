"""Selectors in CEL, with the variables that Kubernetes' dynamic resource allocation (DRA) gives to a device's selector.

A DeviceClass selector from there runs unchanged: ``device.driver == "gpu.nvidia.com" &&
device.capacity["gpu.nvidia.com"].memory.compareTo(quantity("40Gi")) >= 0``. What a device is in those variables says
:mod:`hal.model.cel_device`.

The text is parsed by cel-python's grammar, and compiled once into closures (:mod:`hal.model.cel_compile`). A mistake in
it is a :class:`~hal.errors.SelectorError` with its position. A device for which the evaluation fails (a missing
attribute, a wrong type) does not match, and :meth:`CelSelector.why` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from hal.model.cel_compile import Code, Compiler
from hal.model.cel_device import Path, reader
from hal.model.cel_parse import parse
from hal.model.cel_values import Fault, Meter, kind_of
from hal.model.device import Device

MOST_STEPS = 20_000
"""What one evaluation may cost: a step is an operation in a loop, or some characters of a text; about a microsecond."""
_MEMORY = 4096


class CelSelector:
    """A compiled CEL expression; ``text`` is what was written, ``names`` the variables of a device that it reads.

    It is evaluated once for each distinct combination of the values of ``names`` (of which 4,096 are remembered), so a
    thousand equal devices cost a thousand look-ups and one evaluation.
    """

    __slots__ = ("_parts", "_readers", "_seen", "_slots", "names", "paths", "text")

    def __init__(self, text: str, parts: list[Code], paths: tuple[Path, ...], slots: int) -> None:
        self.text = text
        self.paths = paths
        self.names = tuple(".".join(("device", *path)) for path in paths)
        self._parts = tuple(parts)
        self._readers = tuple(reader(path) for path in paths)
        self._slots = slots
        self._seen: dict[tuple[object, ...], str | None] = {}

    def matches(self, device: Device) -> bool:
        """True if the expression is true of the device; a failing evaluation does not match."""
        return self.why(device) is None

    def why(self, device: Device) -> str | None:
        """Return why the device does not match, or None if it does."""
        values = [read(device) for read in self._readers]
        key = tuple([_key(value) for value in values])
        if key in self._seen:
            return self._seen[key]
        if len(self._seen) >= _MEMORY:
            self._seen.clear()
        answer = self._seen[key] = self._evaluate(values)
        return answer

    def _evaluate(self, values: list[object]) -> str | None:
        """All parts must be true; one that is false says more than one that fails."""
        frame = [values, Meter(MOST_STEPS), *[None] * (self._slots - 2)]
        failed: str | None = None
        for part in self._parts:
            try:
                value = part.run(frame)
            except Fault as fault:
                failed = failed or f"{self._shown(part)} fails: {fault}"
            else:
                if value is False:
                    return f"{self._shown(part)} is false"
                if value is not True:
                    failed = failed or f"{self._shown(part)} is {kind_of(value)}, not bool"
        return failed

    def _shown(self, part: Code) -> str:
        text = " ".join(self.text[part.begin : part.end].split())
        return text if len(text) <= 120 else text[:119] + "…"

    def __repr__(self) -> str:
        return f"CelSelector({self.text!r})"


def _key(value: object) -> object:
    # 1, 1.0 and True are one key of a dict but not one value here: the types belong to the key.
    if isinstance(value, Mapping):
        return tuple(sorted((name, _key(member)) for name, member in value.items()))
    if isinstance(value, tuple):
        return tuple([(type(item).__name__, item) for item in value])
    return type(value).__name__, value


@lru_cache(maxsize=1024)
def compile_cel(text: str) -> CelSelector:
    """Compile an expression, or find it compiled.

    Raises :class:`~hal.errors.SelectorError` with the position of the mistake: syntax, names, the number and, where
    they are known, the types of arguments, a regular expression or a quantity that is none, a value that is no bool.
    """
    tree = parse(text)
    compiler = Compiler(text)
    parts = compiler.conjuncts(tree)
    return CelSelector(text, parts, tuple(compiler.paths), compiler.slots)
