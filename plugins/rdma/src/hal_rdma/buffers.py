"""The user's buffers as bytes, in place, and where they lie."""

from __future__ import annotations

import ctypes
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


class _Buffer(ctypes.Structure):
    """``Py_buffer`` of Python's C interface, part of its stable ABI since 3.11."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int)
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (ctypes.POINTER(_Buffer),)
_release_buffer.restype = None


def address_of(view: memoryview) -> int:
    """Return where a buffer lies, also one that may not be written; it stays there while the view lives."""
    if not view.nbytes:
        return 0
    if not view.readonly:
        return ctypes.addressof(ctypes.c_char.from_buffer(view))
    # ctypes refuses what is read-only; NumPy does not, but loading it takes longer than connecting.
    told = _Buffer()
    _get_buffer(view, told, 0)
    try:
        return told.buf or 0
    finally:
        _release_buffer(told)
