"""Write a small tar archive quickly: thousands of tiny files are mostly headers."""

from __future__ import annotations

import struct
import zlib

FILE, LINK, FOLDER = b"0", b"2", b"5"
_LONG_NAME, _LONG_LINK = b"L", b"K"
_HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s8s32s32s8s8s155s12x")
_BLOCK_BYTES = 512
_SHORT_BYTES = 100


class Tarball:
    """Gathers entries in memory; :meth:`finish` gives the gzipped archive (GNU format, all times zero)."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def add(self, name: str, kind: bytes, *, data: bytes = b"", link: str = "", mode: int = 0o444) -> None:
        """Add a file, a link or a folder."""
        path, target = name.encode(), link.encode()
        for long, sort in ((path, _LONG_NAME), (target, _LONG_LINK)):
            if len(long) > _SHORT_BYTES:
                self._put(b"././@LongLink", sort, long + b"\0", b"", 0o644)
        self._put(path, kind, data, target, mode)

    def _put(self, path: bytes, kind: bytes, data: bytes, target: bytes, mode: int) -> None:
        fields = [path, b"%07o\0" % mode, b"0000000\0", b"0000000\0", b"%011o\0" % len(data), b"00000000000\0"]
        rest = (kind, target, b"ustar  \0", b"", b"", b"", b"", b"")
        header = bytearray(_HEADER.pack(*fields, b" " * 8, *rest))
        header[148:156] = b"%06o\0 " % sum(header)
        self._parts.append(bytes(header))
        if data:
            self._parts.append(data)
            self._parts.append(b"\0" * (-len(data) % _BLOCK_BYTES))

    def finish(self) -> bytes:
        """Return the archive."""
        self._parts.append(b"\0" * (2 * _BLOCK_BYTES))
        packer = zlib.compressobj(5, zlib.DEFLATED, 31)
        return packer.compress(b"".join(self._parts)) + packer.flush()
