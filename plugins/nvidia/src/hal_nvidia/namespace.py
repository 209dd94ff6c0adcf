"""CuPy as the array namespace of one device among several that a process sees, and what stands there without CuPy.

CuPy makes arrays on the device that is current in the thread. Where CUDA shows only one, CuPy itself is the namespace;
where it shows several, functions found here make theirs current first.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any, NoReturn

from hal.errors import Unsupported


class NoNamespace:
    """The namespace of a device on which this process cannot compute: whatever is asked of it says why."""

    def __init__(self, why: Unsupported) -> None:
        self._why = why

    def __getattr__(self, name: str) -> NoReturn:
        raise self._why

    def __repr__(self) -> str:
        return f"<no array namespace: {self._why.message}>"


class DeviceNamespace:
    """A module of CuPy whose functions run on one device."""

    def __init__(self, module: Any, runtime: Any, number: int) -> None:
        self._module = module
        self._runtime = runtime
        self._number = number

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if isinstance(found, ModuleType):
            found = DeviceNamespace(found, self._runtime, self._number)
        elif callable(found) and not isinstance(found, type):
            found = self._on_device(found)
        self.__dict__[name] = found  # the next look-up does not come here
        return found

    def _on_device(self, function: Any) -> Any:
        select, number = self._runtime.setDevice, self._number

        @functools.wraps(function, updated=())
        def call(*args: Any, **kwargs: Any) -> Any:
            select(number)
            return function(*args, **kwargs)

        return call

    def __dir__(self) -> list[str]:
        return dir(self._module)

    def __repr__(self) -> str:
        return f"<{self._module.__name__} on CUDA device {self._number}>"
