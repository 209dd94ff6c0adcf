"""The names of a DPU program's variables: the symbol table of its ELF file (System V ABI, class 32 or 64)."""

from __future__ import annotations

import struct

_HEADER = {1: struct.Struct("<16sHHIIIIIHHHHHH"), 2: struct.Struct("<16sHHIQQQIHHHHHH")}
_SECTION = {1: struct.Struct("<IIIIIIIIII"), 2: struct.Struct("<IIQQQQIIQQ")}
_SYMBOL = {1: struct.Struct("<IIIBBH"), 2: struct.Struct("<IBBHQQ")}
_SYMTAB, _STT_NOTYPE, _STT_OBJECT = 2, 0, 1


def symbol_names(data: bytes) -> tuple[str, ...]:
    """Return the names of global variables (and of untyped symbols, as linker scripts make them), in their order.

    Raises ``ValueError`` for what is no ELF file of little endian.
    """
    if len(data) < 64 or data[:4] != b"\x7fELF" or data[4] not in _HEADER or data[5] != 1:
        raise ValueError("no ELF file of little endian")
    wide = data[4]
    try:
        header = _HEADER[wide].unpack_from(data)
        at, size, count = header[6], header[11], header[12]
        sections = [_SECTION[wide].unpack_from(data, at + size * number) for number in range(count)]
        for section in sections:
            if section[1] == _SYMTAB:
                names = sections[section[6]]
                return tuple(dict.fromkeys(_names(data, wide, section, data[names[4] : names[4] + names[5]])))
    except (struct.error, IndexError) as error:
        raise ValueError(f"a broken ELF file: {error}") from None
    return ()


def _names(data: bytes, wide: int, section: tuple[int, ...], strings: bytes) -> list[str]:
    found: list[str] = []
    layout = _SYMBOL[wide]
    for at in range(section[4], section[4] + section[5], layout.size):
        if wide == 1:
            name, _, _, info, _, place = layout.unpack_from(data, at)
        else:
            name, info, _, place, _, _ = layout.unpack_from(data, at)
        if place and info >> 4 and info & 15 in (_STT_NOTYPE, _STT_OBJECT):
            text = strings[name : strings.find(b"\0", name)]
            if text:
                found.append(text.decode("utf-8", "replace"))
    return found
