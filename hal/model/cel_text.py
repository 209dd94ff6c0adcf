"""CEL's methods of texts, as cel-go's string extension defines them; regular expressions are RE2's, in linear time."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from hal.model.cel_values import LONGEST_TEXT, Fault, Meter, equal, kind_of

_LOWER = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}
_UPPER = {code: code - 32 for code in range(ord("a"), ord("z") + 1)}
_LARGEST_PATTERN = 1 << 20
"""Bytes that a compiled pattern may take."""


@lru_cache(maxsize=256)
def pattern(text: str) -> Any:
    """Return the compiled regular expression; a :class:`~hal.model.cel_values.Fault` for one that is none."""
    import re2

    options = re2.Options()
    options.max_mem = _LARGEST_PATTERN
    options.log_errors = False
    try:
        return re2.compile(text, options)
    except re2.error as error:
        word = error.args[0] if error.args else error
        reason = word.decode(errors="replace") if isinstance(word, bytes) else str(word)
        raise Fault(f"{text[:64]!r} is no regular expression: {reason}") from None


def text_of(name: str, value: Any) -> str:
    """Return the text, or say that the method has no other receiver or argument."""
    if not isinstance(value, str):
        raise Fault(f"no such overload: {name}({kind_of(value)}), it is about texts")
    return value


def bounded(text: str) -> str:
    """Return the text if it is not too long."""
    if len(text) > LONGEST_TEXT:
        raise Fault(f"a text grows beyond {LONGEST_TEXT} characters")
    return text


def _test(name: str, test: Callable[[str, str], bool]) -> Callable[..., bool]:
    def run(meter: Meter, text: Any, part: Any) -> bool:
        whole = text_of(name, text)
        meter.spend(1 + len(whole) // 64)
        return test(whole, text_of(name, part))

    return run


def _change(name: str, change: Callable[[str], str]) -> Callable[..., str]:
    def run(meter: Meter, text: Any) -> str:
        whole = text_of(name, text)
        meter.spend(1 + len(whole) // 64)
        return change(whole)

    return run


def _matches(meter: Meter, text: Any, expression: Any) -> bool:
    whole = text_of("matches", text)
    meter.spend(10 + len(whole))
    return pattern(text_of("matches", expression)).search(whole) is not None


def _find(meter: Meter, text: Any, expression: Any) -> str:
    whole = text_of("find", text)
    meter.spend(10 + len(whole))
    found = pattern(text_of("find", expression)).search(whole)
    return "" if found is None else str(found.group())


def _find_all(meter: Meter, text: Any, expression: Any, most: Any = -1) -> tuple[str, ...]:
    whole = text_of("findAll", text)
    meter.spend(10 + 2 * len(whole))
    found = tuple(str(match.group()) for match in pattern(text_of("findAll", expression)).finditer(whole))
    return found if most < 0 else found[:most]


def _position(value: Any, length: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise Fault(f"a position is a whole number, not {kind_of(value)}")
    if not 0 <= value <= length:
        raise Fault(f"position {value} is outside of the {length} there are")
    return value


def _index_of(meter: Meter, text: Any, part: Any, start: Any = 0) -> int:
    if isinstance(text, tuple):
        meter.spend(len(text))
        return next((position for position, item in enumerate(text) if equal(item, part, meter)), -1)
    whole = text_of("indexOf", text)
    meter.spend(1 + len(whole) // 64)
    return whole.find(text_of("indexOf", part), _position(start, len(whole)))


def _last_index_of(meter: Meter, text: Any, part: Any, last: Any = None) -> int:
    if isinstance(text, tuple):
        meter.spend(len(text))
        return max((position for position, item in enumerate(text) if equal(item, part, meter)), default=-1)
    whole, piece = text_of("lastIndexOf", text), text_of("lastIndexOf", part)
    meter.spend(1 + len(whole) // 64)
    return whole.rfind(piece) if last is None else whole.rfind(piece, 0, _position(last, len(whole)) + len(piece))


def _char_at(meter: Meter, text: Any, position: Any) -> str:
    whole = text_of("charAt", text)
    at = _position(position, len(whole))
    return whole[at : at + 1]


def _substring(meter: Meter, text: Any, start: Any, end: Any = None) -> str:
    whole = text_of("substring", text)
    last = len(whole) if end is None else _position(end, len(whole))
    first = _position(start, len(whole))
    if first > last:
        raise Fault(f"the substring would end at {last}, before it begins at {first}")
    return whole[first:last]


def _replace(meter: Meter, text: Any, old: Any, new: Any, most: Any = -1) -> str:
    whole, before, after = text_of("replace", text), text_of("replace", old), text_of("replace", new)
    times = whole.count(before) if most < 0 else min(most, whole.count(before))
    meter.spend(1 + len(whole) // 16 + times)
    if len(whole) + times * (len(after) - len(before)) > LONGEST_TEXT:
        raise Fault(f"a text grows beyond {LONGEST_TEXT} characters")
    return whole.replace(before, after, times)


def _split(meter: Meter, text: Any, separator: Any, most: Any = -1) -> tuple[str, ...]:
    whole, between = text_of("split", text), text_of("split", separator)
    meter.spend(1 + len(whole))
    if most == 0:
        return ()
    if between == "":
        return tuple(whole) if most < 0 or most >= len(whole) else (*whole[: most - 1], whole[most - 1 :])
    return tuple(whole.split(between, most - 1 if most > 0 else -1))


def _join(meter: Meter, items: Any, separator: Any = "") -> str:
    if not isinstance(items, tuple):
        raise Fault(f"no such overload: join({kind_of(items)})")
    between = text_of("join", separator)
    meter.spend(1 + len(items))
    texts = [text_of("join", item) for item in items]
    if sum(map(len, texts)) + len(between) * len(texts) > LONGEST_TEXT:
        raise Fault(f"a text grows beyond {LONGEST_TEXT} characters")
    return between.join(texts)


def _contains(meter: Meter, text: Any, part: Any) -> bool:
    whole = text_of("contains", text)
    meter.spend(1 + len(whole) // 64)
    return text_of("contains", part) in whole


TEXT_METHODS: tuple[tuple[str, Callable[..., Any], str, int, int, tuple[str, ...]], ...] = (
    ("contains", _contains, "bool", 1, 1, ("string",)),
    ("startsWith", _test("startsWith", str.startswith), "bool", 1, 1, ("string",)),
    ("endsWith", _test("endsWith", str.endswith), "bool", 1, 1, ("string",)),
    ("matches", _matches, "bool", 1, 1, ("string",)),
    ("find", _find, "string", 1, 1, ("string",)),
    ("findAll", _find_all, "list", 1, 2, ("string",)),
    ("lowerAscii", _change("lowerAscii", lambda text: text.translate(_LOWER)), "string", 0, 0, ("string",)),
    ("upperAscii", _change("upperAscii", lambda text: text.translate(_UPPER)), "string", 0, 0, ("string",)),
    ("trim", _change("trim", str.strip), "string", 0, 0, ("string",)),
    ("reverse", _change("reverse", lambda text: text[::-1]), "string", 0, 0, ("string",)),
    ("charAt", _char_at, "string", 1, 1, ("string",)),
    ("indexOf", _index_of, "int", 1, 2, ("string", "list")),
    ("lastIndexOf", _last_index_of, "int", 1, 2, ("string", "list")),
    ("substring", _substring, "string", 1, 2, ("string",)),
    ("replace", _replace, "string", 2, 3, ("string",)),
    ("split", _split, "list", 1, 2, ("string",)),
    ("join", _join, "string", 0, 1, ("list",)),
)
"""Name, function, type of the result, least and most arguments, types that have the method."""
