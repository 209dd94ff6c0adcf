"""YAML of plain values, written so that any YAML 1.1 or 1.2 reader gives back the same values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\0": "\\0"}
# YAML 1.1 reads these words, in any case, as booleans or nothing.
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "y", "n", "null", "none", "nan", "inf"})


def emit(value: object) -> str:
    """Return a document: mappings and sequences in block style, texts quoted unless they are plain words."""
    return "\n".join(_lines(value, 0)) + "\n"


def _lines(value: object, depth: int) -> Iterator[str]:
    indent = "  " * depth
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _entry(f"{indent}{_scalar(key)}:", item, depth)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and value:
        for item in value:
            if _is_block(item):
                first, *rest = _lines(item, depth + 1)
                yield f"{indent}- {first[len(indent) + 2 :]}"
                yield from rest
            else:
                yield f"{indent}- {_flow(item)}"
    else:
        yield indent + _flow(value)


def _entry(head: str, item: object, depth: int) -> Iterator[str]:
    if _is_block(item):
        yield head
        yield from _lines(item, depth + 1)
    else:
        yield f"{head} {_flow(item)}"


def _is_block(value: object) -> bool:
    return isinstance(value, (Mapping, Sequence)) and not isinstance(value, (str, bytes)) and bool(value)


def _flow(value: object) -> str:
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return "[]"
    return _scalar(value)


def _scalar(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return _float(value)
    text = str(value)
    if text and text[0].isalpha() and _SAFE.issuperset(text) and text.lower() not in _WORDS:
        return text
    return '"' + "".join(_ESCAPES.get(char) or _char(char) for char in text) + '"'


def _float(value: float) -> str:
    if value != value:
        return ".nan"
    if value in (float("inf"), float("-inf")):
        return ".inf" if value > 0 else "-.inf"
    text = repr(value)
    digits, exponent, power = text.partition("e")
    return text if not exponent or "." in digits else f"{digits}.0e{power}"  # YAML 1.1 wants the point


def _char(char: str) -> str:
    code = ord(char)
    if 0x20 <= code < 0x7F or (0xA0 <= code < 0xD800 and code not in (0x2028, 0x2029)):
        return char
    if 0xE000 <= code <= 0xFFFD and code != 0xFEFF:
        return char
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
