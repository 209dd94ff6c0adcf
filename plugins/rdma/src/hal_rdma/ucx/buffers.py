"""The user's buffers as bytes, in place."""

from __future__ import annotations

from typing import Any

from hal.errors import InvalidArgument


def as_bytes(buffer: Any, device: str, step: str, *, writable: bool = False) -> memoryview:
    """Return a contiguous buffer of any element type as bytes, without a copy.

    Raises ``InvalidArgument`` for what is no buffer or not contiguous, and for a read-only one that is to be written.
    """
    try:
        view = memoryview(buffer)
    except (TypeError, ValueError) as error:  # ValueError: NumPy's types that the buffer protocol has no code for
        view = _of_array(buffer, device, step, str(error))
    if view.format == "O":
        raise _refused("the addresses of Python's objects are nobody's bytes", device, step, "an array of numbers")
    if not view.c_contiguous:
        raise _refused("the buffer is not contiguous", device, step, "numpy.ascontiguousarray")
    if writable and view.readonly:
        raise _refused("the buffer is read-only", device, step, "a bytearray or a writable array")
    if view.format == "B" and view.ndim == 1:
        return view
    if not view.nbytes:
        return memoryview(bytearray())
    try:
        return view.cast("B")
    except TypeError as error:  # records and big-endian numbers have no code of one letter
        return _of_array(buffer, device, step, str(error))


def _of_array(buffer: Any, device: str, step: str, why: str) -> memoryview:
    import numpy as np

    if isinstance(buffer, np.ndarray) and buffer.flags.c_contiguous and not buffer.dtype.hasobject:
        return buffer.reshape(-1).view(np.uint8).data
    raise _refused(f"not a contiguous buffer: {why}", device, step, "bytes, or numpy.ascontiguousarray")


def _refused(why: str, device: str, step: str, hint: str) -> InvalidArgument:
    return InvalidArgument(why, device=device, during=step, hint=hint)
