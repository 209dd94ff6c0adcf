"""The kernel unpacked on the host: emulated, the same takes some six seconds of each boot."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

_SETUP_SECTORS, _PAYLOAD_OFFSET, _PAYLOAD_LENGTH = 0x1F1, 0x248, 0x24C
_PVH_NOTE = b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0"


def unpacked(image: Path, folder: Path) -> Path:
    """Return the ELF kernel inside a bzImage (Documentation/x86/boot.rst), kept in ``folder``.

    Where it is packed in a way that the standard library does not know, or has no entry point for QEMU's direct boot
    (PVH: a note of type 18), the image itself does, slower.
    """
    target = folder / f"{image.name}.elf"
    if target.exists() and target.stat().st_mtime > image.stat().st_mtime:
        return target
    data = image.read_bytes()
    start = (data[_SETUP_SECTORS] + 1) * 512 + _word(data, _PAYLOAD_OFFSET)
    packed = data[start : start + _word(data, _PAYLOAD_LENGTH)]
    if packed.startswith(b"\xfd7zXZ"):
        kernel = lzma.LZMADecompressor().decompress(packed)
    elif packed.startswith(b"\x1f\x8b"):
        kernel = gzip.decompress(packed[:-4])  # the length stands behind it
    else:
        return image
    if not kernel.startswith(b"\x7fELF") or _PVH_NOTE not in kernel:
        return image
    scratch = target.with_suffix(".part")
    scratch.write_bytes(kernel)
    scratch.replace(target)
    return target


def _word(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")
