"""The state file's layout, read from the C header that lays it out: one source for both sides."""

from __future__ import annotations

import ctypes
import re
from functools import cache
from pathlib import Path
from typing import Any

LIBRARY = Path(__file__).with_name("library")
_DEFINE = re.compile(r"#define (\w+) (\d+)$")
_MEMBER = re.compile(r"(?:struct )?(\w+) (\w+)(?:\[(\w+)\])?;$")
_TYPES: dict[str, Any] = {
    "char": ctypes.c_char,
    "double": ctypes.c_double,
    "int32_t": ctypes.c_int32,
    "uint8_t": ctypes.c_uint8,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
}


@cache
def layout() -> tuple[dict[str, Any], dict[str, int]]:
    """Return the structs of ``state.h`` as ctypes classes by name, and its numbers."""
    structs: dict[str, Any] = {}
    numbers: dict[str, int] = {}
    types = dict(_TYPES)
    name = ""
    members: list[tuple[str, Any]] = []
    for line in map(str.strip, (LIBRARY / "state.h").read_text(encoding="utf-8").splitlines()):
        if define := _DEFINE.match(line):
            numbers[define[1]] = int(define[2])
        elif line.startswith("struct ") and line.endswith("{"):
            name, members = line.split()[1], []
        elif line == "};":
            structs[name] = types[name] = type(name, (ctypes.Structure,), {"_fields_": members})
        elif member := _MEMBER.match(line):
            kind, title, length = types[member[1]], member[2], member[3]
            members.append((title, kind * (numbers.get(length) or int(length)) if length else kind))
    return structs, numbers


def struct(name: str) -> Any:
    """Return one struct's class."""
    return layout()[0][name]


def number(name: str) -> int:
    """Return one number."""
    return layout()[1][name]
