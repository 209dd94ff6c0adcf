"""One look at a GPU: the calls of NVML that a sample consists of, made one after the other, each failing alone.

A call that this board or driver can never answer is asked once and then left out until :meth:`Sampler.arm`.
``nvmlDeviceGetPcieThroughput`` is no part of it: it measures for 20 ms a call. The counters of bytes (fields 197 and
198) tell the same, where the driver has them.
"""

from __future__ import annotations

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
_UNSIGNED_INT, _DOUBLE = 1, 0

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
_FIXED: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("sm_max_clock", "nvmlDeviceGetMaxClockInfo", (1,)),
    ("pcie_max_generation", "nvmlDeviceGetMaxPcieLinkGeneration", ()),
    ("pcie_max_width", "nvmlDeviceGetMaxPcieLinkWidth", ()),
)
_OLDER = {"reasons": "nvmlDeviceGetCurrentClocksThrottleReasons"}  # the name before driver 535

Reading = dict[Any, Any]
"""What was read by name (``power``), by number for fields (``230``), and ``("nvlink", 3)`` for a link's state: the
value as the binding gives it, or the error."""


class Sampler:
    """The calls for one GPU, bound to its handle."""

    def __init__(self, nvml: Any, handle: Any, links: tuple[int, ...] = ()) -> None:
        self._nvml = nvml
        self._handle = handle
        self._links = links
        self._calls: list[tuple[Any, Callable[[], Any]]] = []
        self._fixed: Reading = {}
        self._fields: tuple[int, ...] = FIELDS
        self.arm()

    def arm(self) -> None:
        """Ask for everything again at the next look: modes may have changed what can be answered."""
        self._fixed = {}
        self._fields = FIELDS
        self._calls = []
        for name, function, arguments in CALLS:
            self._bind(name, function, *arguments)
        for link in self._links:
            self._bind(("nvlink", link), "nvmlDeviceGetNvLinkState", link)
        for name, function, arguments in _FIXED:
            self._fixed[name] = self._once(function, *arguments)

    def _bind(self, name: Any, function: str, *arguments: int) -> None:
        call = getattr(self._nvml, function, None)
        if call is None:
            self._fixed[name] = self._nvml.NVMLError(e.FUNCTION_NOT_FOUND)
        else:
            self._calls.append((name, partial(call, self._handle, *arguments)))

    def _once(self, function: str, *arguments: int) -> Any:
        try:
            return getattr(self._nvml, function)(self._handle, *arguments)
        except Exception as error:  # a guard around the library: what it reports is kept as the value's absence
            if e.code_of(error) is None:
                raise
            return error

    def read(self) -> Reading:
        """Make the calls. Raises what NVML raises only if the GPU is lost: then nothing else is worth asking."""
        found = dict(self._fixed)
        for name, call in self._calls:
            try:
                found[name] = call()
            except Exception as error:  # a guard around the library: what it reports is kept as the value's absence
                self._note(found, name, error)
        if self._fields:
            self._read_fields(found)
        return found

    def _note(self, found: Reading, name: Any, error: Exception) -> None:
        code = e.code_of(error)
        if code is None or code in e.LOST:
            raise error
        found[name] = error
        if code in e.NEVER:
            self._calls = [call for call in self._calls if call[0] != name]
            older = _OLDER.get(name)
            if code == e.FUNCTION_NOT_FOUND and older is not None and not self._fixed.get(name):
                self._bind(name, older)
                found[name] = self._once(older)
            else:
                self._fixed[name] = error

    def _read_fields(self, found: Reading) -> None:
        try:
            values = self._nvml.nvmlDeviceGetFieldValues(self._handle, self._fields)
        except Exception as error:  # the same guard: an older driver has no fields at all
            code = e.code_of(error)
            if code is None or code in e.LOST:
                raise
            found.update(dict.fromkeys(self._fields, error))
            if code in e.NEVER:
                self._fixed.update(dict.fromkeys(self._fields, error))
                self._fields = ()
            return
        unsupported = False
        for number, _, _, _, kind, code, value in _FIELD.iter_unpack(values):
            if code == 0:
                found[number] = value & 0xFFFFFFFF if kind == _UNSIGNED_INT else value
            else:
                found[number] = self._nvml.NVMLError(code)
                unsupported = unsupported or code in e.NEVER
        if unsupported:
            for number in self._fields:
                answer = found.get(number)
                if isinstance(answer, Exception) and e.code_of(answer) in e.NEVER:
                    self._fixed[number] = answer
            self._fields = tuple(number for number in self._fields if number not in self._fixed)
