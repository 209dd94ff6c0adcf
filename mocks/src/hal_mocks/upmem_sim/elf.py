"""Just enough of ELF: sections and symbols of a 32-bit file."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from hal.errors import DriverError

_SYMTAB = 2
_NOBITS = 8


class Elf:
    """A 32-bit little-endian ELF file in memory."""

    def __init__(self, data: bytes) -> None:
        if len(data) < 52 or data[:6] != b"\x7fELF\x01\x01":
            raise DriverError("not a DPU program or object", hint="hal-dpucc makes them")
        self.data = data
        offset, size, count, names = struct.unpack_from("<I", data, 32) + struct.unpack_from("<HHH", data, 46)
        headers = [struct.unpack_from("<10I", data, offset + each * size) for each in range(count)]
        texts = headers[names]
        self._sections = {self._text(texts[4], header[0]): header for header in headers}

    def _text(self, table: int, at: int) -> str:
        return self.data[table + at : self.data.index(b"\0", table + at)].decode(errors="replace")

    def section(self, name: str) -> bytes:
        """Return a section's bytes; none if there is no such section."""
        header = self._sections.get(name)
        if header is None or header[1] == _NOBITS:
            return b""
        return self.data[header[4] : header[4] + header[5]]

    def symbols(self) -> Mapping[str, int]:
        """Return the value of each symbol by its name."""
        return dict(self._symbols())

    def _symbols(self) -> Iterator[tuple[str, int]]:
        headers = list(self._sections.values())
        for header in headers:
            if header[1] == _SYMTAB:
                texts = self._sections[".strtab"][4]
                for at in range(header[4], header[4] + header[5], 16):
                    name, value = struct.unpack_from("<II", self.data, at)
                    yield self._text(texts, name), value
