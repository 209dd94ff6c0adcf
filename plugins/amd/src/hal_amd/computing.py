"""The verbs of memory and computing, which this plugin does not have: each says what to do in place of it.

Programs of ROCm (PyTorch, CuPy for ROCm, HIP) compute on a leased GPU under the lease's environment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from hal.drivers.opened import OpenedDevice
from hal.errors import Unsupported
from hal.interfaces.deadline import Deadline
from hal.interfaces.gpu_compute import Buffer, Dim, Kernel, Shape, Stream
from hal_amd.visible import VARIABLE, token


class NoNamespace:
    """In place of an array namespace: whatever is asked of it says why there is none."""

    def __init__(self, why: Unsupported) -> None:
        self._why = why

    def __getattr__(self, name: str) -> NoReturn:
        raise self._why

    def __repr__(self) -> str:
        return f"<no array namespace: {self._why.message}>"


class ManagedOnly(OpenedDevice):
    """An opened GPU on which this process does not compute."""

    @property
    def environment(self) -> dict[str, str]:
        """What a child process needs in its environment to use this device and nothing else of AMD's."""
        return {VARIABLE: token(self._device.aliases) or ""}

    def _no_computing(self, step: str) -> Unsupported:
        variables = " ".join(f"{name}={value}" for name, value in self.environment.items())
        return Unsupported(
            "this plugin manages AMD GPUs and does not compute on them",
            device=self._device.id,
            during=step,
            hint=f"run a program of ROCm with {variables}",
        )

    def _refuse_computing(self, step: str, deadline: Deadline | None) -> NoReturn:
        self._enter(step, deadline)
        raise self._no_computing(step)

    @property
    def xp(self) -> Any:
        """No array namespace: what is asked of it raises ``Unsupported``."""
        self._enter("xp")
        return NoNamespace(self._no_computing("xp"))

    @property
    def kernel_languages(self) -> tuple[str, ...]:
        """None."""
        return ()

    def allocate(self, shape: Shape, dtype: str = "uint8", *, deadline: Deadline | None = None) -> Buffer:
        """Raise ``Unsupported``."""
        self._refuse_computing("allocate", deadline)

    def copy_to_device(
        self,
        source: Any,
        target: Buffer | None = None,
        *,
        stream: Stream | None = None,
        deadline: Deadline | None = None,
    ) -> Buffer:
        """Raise ``Unsupported``."""
        self._refuse_computing("copy_to_device", deadline)

    def copy_to_host(
        self,
        source: Any,
        target: Any = None,
        *,
        stream: Stream | None = None,
        deadline: Deadline | None = None,
    ) -> Any:
        """Raise ``Unsupported``."""
        self._refuse_computing("copy_to_host", deadline)

    def copy_peer(
        self, source: Buffer, target: Buffer, *, stream: Stream | None = None, deadline: Deadline | None = None
    ) -> None:
        """Raise ``Unsupported``."""
        self._refuse_computing("copy_peer", deadline)

    def stream(self, *, deadline: Deadline | None = None) -> Stream:
        """Raise ``Unsupported``."""
        self._refuse_computing("stream", deadline)

    def synchronize(self, *, deadline: Deadline | None = None) -> None:
        """Raise ``Unsupported``."""
        self._refuse_computing("synchronize", deadline)

    def load_kernel(
        self, source: str | Callable[..., object], name: str = "", *, deadline: Deadline | None = None
    ) -> Kernel:
        """Raise ``Unsupported``."""
        self._refuse_computing("load_kernel", deadline)

    def launch(
        self,
        kernel: Kernel,
        grid: Dim,
        block: Dim,
        args: Sequence[Any] = (),
        *,
        stream: Stream | None = None,
        shared_bytes: int = 0,
        deadline: Deadline | None = None,
    ) -> None:
        """Raise ``Unsupported``."""
        self._refuse_computing("launch", deadline)
