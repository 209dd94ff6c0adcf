"""Anybody's memory as bytes, in place: what the verbs of all kinds take as a buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from hal.errors import InvalidArgument

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def as_bytes(buffer: Any, device: str, step: str, *, writable: bool = False) -> memoryview:
    """Return a contiguous buffer of any element type as bytes, without a copy; an empty one is as good as any.

    Raises ``InvalidArgument`` for what is no buffer or not contiguous, and for a read-only one that is to be written.
    """
    try:
        view = memoryview(cast("ReadableBuffer", buffer))
    except (TypeError, ValueError) as error:  # ValueError: NumPy's own types, such as datetime64
        view = _of_array(buffer, device, step, str(error))
    if view.format == "O":  # addresses of Python's objects are nobody's bytes
        raise InvalidArgument("objects have no bytes", device=device, during=step, hint="an array of numbers")
    if not view.c_contiguous:
        raise InvalidArgument(
            "the buffer is not contiguous", device=device, during=step, hint="numpy.ascontiguousarray"
        )
    if writable and view.readonly:
        raise InvalidArgument(
            "the buffer is read-only", device=device, during=step, hint="use a bytearray or a writable array"
        )
    if view.format == "B" and view.ndim == 1:
        return view
    if not view.nbytes:
        return memoryview(bytearray())
    try:
        return view.cast("B")
    except TypeError as error:  # elements without a code of their own: big-endian ones, records
        return _of_array(buffer, device, step, str(error))


def _of_array(buffer: Any, device: str, step: str, why: str) -> memoryview:
    import numpy as np

    if isinstance(buffer, np.ndarray) and buffer.flags.c_contiguous and not buffer.dtype.hasobject:
        return buffer.reshape(-1).view(np.uint8).data
    raise InvalidArgument(
        f"not a contiguous buffer: {why}", device=device, during=step, hint="bytes, or numpy.ascontiguousarray"
    )
