"""One look at a GPU: the calls of NVML that a sample consists of, made one after the other, each failing alone.

A call that this board or driver can never answer is asked once and then left out until :meth:`Sampler.arm`.
``nvmlDeviceGetPcieThroughput`` is no part of it: it measures for 20 ms a call. The counters of bytes (fields 197 and
198) tell the same, where the driver has them.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from hal_nvidia import errors as e

RECOVERY_ACTION = 230
PCIE_SENT, PCIE_RECEIVED = 197, 198
NVLINK_CRC_FLIT, NVLINK_CRC_DATA, NVLINK_REPLAY, NVLINK_RECOVERY = 38, 45, 52, 59
FIELDS = (
    RECOVERY_ACTION,
    PCIE_SENT,
    PCIE_RECEIVED,
    NVLINK_CRC_FLIT,
    NVLINK_CRC_DATA,
    NVLINK_REPLAY,
    NVLINK_RECOVERY,
)
"""Field ids of nvml.h that one call of ``nvmlDeviceGetFieldValues`` asks for."""

_FIELD = struct.Struct("=IIqqIIQ")  # nvmlFieldValue_t: id, scope, timestamp, latency, type of value, return code, value
_UNSIGNED_INT = 1
_WORD_BYTES = ctypes.sizeof(ctypes.c_ulonglong)

CALLS: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("utilization", "nvmlDeviceGetUtilizationRates", ()),
    ("memory", "nvmlDeviceGetMemoryInfo", ()),
    ("power", "nvmlDeviceGetPowerUsage", ()),
    ("power_limit", "nvmlDeviceGetPowerManagementLimit", ()),
    ("energy", "nvmlDeviceGetTotalEnergyConsumption", ()),
    ("temperature", "nvmlDeviceGetTemperature", (0,)),
    ("sm_clock", "nvmlDeviceGetClockInfo", (1,)),
    ("memory_clock", "nvmlDeviceGetClockInfo", (2,)),
    ("reasons", "nvmlDeviceGetCurrentClocksEventReasons", ()),
    ("pcie_generation", "nvmlDeviceGetCurrPcieLinkGeneration", ()),
    ("pcie_width", "nvmlDeviceGetCurrPcieLinkWidth", ()),
    ("pcie_replays", "nvmlDeviceGetPcieReplayCounter", ()),
    ("remapped", "nvmlDeviceGetRemappedRows", ()),
    ("uncorrected", "nvmlDeviceGetTotalEccErrors", (1, 0)),
    ("retired_pending", "nvmlDeviceGetRetiredPagesPendingStatus", ()),
)
"""Name, function and arguments after the handle: sensor 0 is the GPU's own; clock 1 the multiprocessors', 2 memory's;
error type 1 uncorrected, counter 0 since the last reset.
"""
_OF_SEVERAL = frozenset({"utilization", "memory", "remapped"})
"""Those that give a structure, or several numbers; all others give one number."""
_FIXED: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("sm_max_clock", "nvmlDeviceGetMaxClockInfo", (1,)),
    ("pcie_max_generation", "nvmlDeviceGetMaxPcieLinkGeneration", ()),
    ("pcie_max_width", "nvmlDeviceGetMaxPcieLinkWidth", ()),
)
_OLDER = {"reasons": "nvmlDeviceGetCurrentClocksThrottleReasons"}  # the name before driver 535

Reading = dict[Any, Any]
"""What was read by name (``power``), and by number for fields (``230``): the value as the binding gives it, or the
error. ``nvlinks`` are the states of the links, in the order of the sampler's; ``failed`` is true if a call failed that
is not known to fail always.
"""


class Sampler:
    """The calls for one GPU, bound to its handle.

    Most of them ask for one number, where the binding's own work is more than half of the time. So they go to the
    library's functions themselves, which write into an array; what an error means is asked of the binding.
    """

    def __init__(self, nvml: Any, handle: Any, links: tuple[int, ...] = ()) -> None:
        self._nvml = nvml
        self._handle = handle
        self._links = links
        self._fixed: Reading = {}
        self._fields: tuple[int, ...] = FIELDS
        self._field_values: Any = None
        self._calls: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._structures: dict[str, Callable[[], Any]] = {}
        self._numbers: tuple[str, ...] = ()
        self._words: Any = None
        self._bare: list[Callable[[], int]] | None = None
        self.arm()

    def arm(self) -> None:
        """Ask for everything again at the next look: modes may have changed what can be answered."""
        self._fixed = {"failed": False}
        self._fields, self._field_values = FIELDS, None
        self._calls = {name: (function, arguments) for name, function, arguments in CALLS}
        for name, function, arguments in _FIXED:
            self._fixed[name] = self._once(function, *arguments)
        self._bind()

    def _bind(self) -> None:
        self._structures = {
            name: partial(getattr(self._nvml, function), self._handle, *arguments)
            for name, (function, arguments) in self._calls.items()
            if name in _OF_SEVERAL
        }
        self._numbers = tuple(name for name in self._calls if name not in _OF_SEVERAL)
        asked = [self._calls[name] for name in self._numbers]
        asked += [("nvmlDeviceGetNvLinkState", (link,)) for link in self._links]
        # A function that gives a number of 32 bits leaves the upper half of its word zero (x86 and Arm alike).
        words = self._words = (ctypes.c_ulonglong * len(asked))()
        functions = [getattr(getattr(self._nvml, "nvmlLib", None), function, None) for function, _ in asked]
        self._bare = None
        if None not in functions:
            self._bare = [
                partial(call, self._handle, *map(ctypes.c_uint, arguments), ctypes.byref(words, place * _WORD_BYTES))
                for place, (call, (_, arguments)) in enumerate(zip(functions, asked, strict=True))
                if call is not None
            ]

    def _once(self, function: str, *arguments: int) -> Any:
        call = getattr(self._nvml, function, None)
        if call is None:
            return self._nvml.NVMLError(e.FUNCTION_NOT_FOUND)
        try:
            return call(self._handle, *arguments)
        except Exception as error:  # a guard around the library: what it reports is kept as the value's absence
            if e.code_of(error) is None or e.code_of(error) in e.LOST:
                raise
            return error

    def read(self) -> Reading:
        """Make the calls. Raises what NVML raises only if the GPU is lost: then nothing else is worth asking."""
        found = self._fixed.copy()
        codes = [call() for call in self._bare] if self._bare is not None else [e.FUNCTION_NOT_FOUND]
        if any(codes):
            self._read_each(found)
        else:
            values = self._words[:]
            found.update(zip(self._numbers, values, strict=False))
            found["nvlinks"] = values[len(self._numbers) :]
        try:
            for name, call in self._structures.items():
                found[name] = call()
        except Exception as error:  # a guard around the library: what one call reports is that value's absence
            if e.code_of(error) is None or e.code_of(error) in e.LOST:
                raise
            self._read_each(found)
        if self._fields:
            self._read_fields(found)
        return found

    def _read_each(self, found: Reading) -> None:
        """Ask for one after the other through the binding; leave out from now on what can never be answered."""
        found["failed"] = True
        before = len(self._calls)
        for name, (function, arguments) in tuple(self._calls.items()):
            found[name] = answer = self._once(function, *arguments)
            if isinstance(answer, Exception) and e.code_of(answer) in e.NEVER:
                self._leave_out(found, name, answer)
        found["nvlinks"] = [self._once("nvmlDeviceGetNvLinkState", link) for link in self._links]
        if len(self._calls) != before:
            self._bind()

    def _leave_out(self, found: Reading, name: str, answer: Exception) -> None:
        older = _OLDER.get(name)
        if older is not None and self._calls[name][0] != older:
            found[name] = self._once(older)
            if not isinstance(found[name], Exception):
                self._calls[name] = (older, ())
                self._bind()
                return
        del self._calls[name]
        self._fixed[name] = answer

    def _read_fields(self, found: Reading) -> None:
        values = self._ask_fields()
        if isinstance(values, Exception):
            if e.code_of(values) in e.LOST:
                raise values
            found.update(dict.fromkeys(self._fields, values))
            if e.code_of(values) in e.NEVER:
                self._fixed.update(dict.fromkeys(self._fields, values))
                self._fields = ()
            return
        never = False
        for number, _, _, _, kind, code, value in _FIELD.iter_unpack(values):
            if code == 0:
                found[number] = value & 0xFFFFFFFF if kind == _UNSIGNED_INT else value
                continue
            found[number] = self._nvml.NVMLError(code)
            if code in e.NEVER:
                self._fixed[number] = found[number]
                never = True
        if never:
            self._fields = tuple(number for number in self._fields if number not in self._fixed)
            self._field_values = None

    def _ask_fields(self) -> Any:
        """Return the array of fields as the library filled it, or its error; the ids in it are written once."""
        call = getattr(getattr(self._nvml, "nvmlLib", None), "nvmlDeviceGetFieldValues", None)
        if call is None:
            return self._nvml.NVMLError(e.FUNCTION_NOT_FOUND)
        if self._field_values is None:
            self._field_values = (self._nvml.c_nvmlFieldValue_t * len(self._fields))()
            for value, number in zip(self._field_values, self._fields, strict=True):
                value.fieldId = number
        code = call(self._handle, ctypes.c_int(len(self._fields)), self._field_values)
        return self._nvml.NVMLError(code) if code else self._field_values
