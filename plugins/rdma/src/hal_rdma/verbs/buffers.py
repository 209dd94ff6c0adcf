"""Local memory as the NIC wants it: contiguous bytes with an address."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, cast

from hal.errors import InvalidArgument

if TYPE_CHECKING:
    from hal.interfaces.rnic import Readable


def bytes_of(memory: Readable, device: str, step: str, *, writable: bool = False) -> memoryview:
    """Return a buffer as its bytes, without a copy. Raises ``InvalidArgument`` if it cannot be used in place."""
    try:
        view = memoryview(cast("bytes", memory))  # an array has the buffer interface, too
    except TypeError:
        raise InvalidArgument(
            f"{type(memory).__name__} is no buffer", device=device, during=step, hint="give bytes or an array"
        ) from None
    if not view.c_contiguous:
        raise InvalidArgument(
            "the buffer is not contiguous", device=device, during=step, hint="numpy.ascontiguousarray, or a copy"
        )
    if writable and view.readonly:
        raise InvalidArgument("the buffer is read-only", device=device, during=step, hint="give a bytearray or array")
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def address_of(view: memoryview) -> int:
    """Return where a buffer lies; it stays there while the view lives."""
    if not view.nbytes:
        return 0
    if not view.readonly:
        return ctypes.addressof(ctypes.c_char.from_buffer(view))
    import numpy as np  # which also sees what may not be written, and is no small thing to load

    return cast(int, np.frombuffer(view, np.uint8).__array_interface__["data"][0])
