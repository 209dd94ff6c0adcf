"""Resetting a GPU by ``nvidia-smi --gpu-reset``: NVML has no function for it.

The tool refuses while a process has the GPU open, which is the reason why this driver's own event set is given back
first. GPUs that NVLinks join without a switch are reset together; the caller has ended every lease on them.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping

from hal.errors import AccessDenied, DeviceBusy, DeviceError, DeviceGone, HardwareFault, Unsupported
from hal.interfaces.deadline import Deadline, or_default
from hal.interfaces.operation import Operation
from hal_nvidia.board import Board
from hal_nvidia.driver import NvidiaDriver

TOOL = "nvidia-smi"
RESET_SECONDS = 60.0
_LOOK_SECONDS = 0.2


def find_tool(environ: Mapping[str, str]) -> str | None:
    """Return the path of ``nvidia-smi``, None where it is not installed."""
    return shutil.which(TOOL, path=environ.get("PATH"))


class ResettingNvidiaDriver(NvidiaDriver):
    """The driver where the tool is at hand."""

    def reset(self, device_id: str, *, deadline: Deadline | None = None) -> Operation[None]:
        """Reset a GPU and wait until NVML reaches it again; its MIG devices end with it."""
        limit = or_default(deadline, RESET_SECONDS)
        board = self._find(device_id, "reset", limit)
        if board.uuid != device_id:
            unsupported = Unsupported(
                "a part of a GPU is reset with the whole", device=device_id, during="reset", hint=f"reset {board.uuid}"
            )
            return Operation.failed(unsupported, device_id, "reset")

        def work(_: Operation[None]) -> None:
            self._run(board, limit)
            board.forget()
            self.library.refresh()
            self._wait_for(board, limit)

        return Operation.spawn(device_id, "reset", work)

    def _run(self, board: Board, deadline: Deadline) -> None:
        tool = find_tool(self.environ)
        if tool is None:
            raise Unsupported(f"{TOOL} is gone", device=board.uuid, during="reset", hint="install NVIDIA's driver")
        self.close()
        try:
            done = subprocess.run(
                [tool, "--gpu-reset", "-i", board.address],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=deadline.timeout,
                env=dict(self.environ),
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise HardwareFault(
                f"{TOOL} did not end in time", device=board.uuid, during="reset", hint="reboot the node"
            ) from None
        if done.returncode:
            raise _refusal(board, " ".join((done.stdout + " " + done.stderr).split()), done.returncode)

    def _wait_for(self, board: Board, deadline: Deadline) -> None:
        import time

        while True:
            self.discover(deadline)
            if not board.lost and not (board.stuck is not None and not board.stuck.finished):
                return
            if deadline.expired:
                raise DeviceGone(
                    "the GPU did not come back after its reset",
                    device=board.uuid,
                    during="reset",
                    hint="look at dmesg; reboot the node",
                )
            time.sleep(_LOOK_SECONDS)


def _refusal(board: Board, text: str, status: int) -> DeviceError:
    lower = text.lower()
    words = f"{TOOL}: {text or f'status {status}'}"
    if "in use" in lower:
        return DeviceBusy(words, device=board.uuid, during="reset", hint="end the processes that use it")
    if "permission" in lower or "root" in lower:
        return AccessDenied(words, device=board.uuid, during="reset", hint="do it as root")
    if "not supported" in lower:
        return Unsupported(words, device=board.uuid, during="reset", hint="reboot the node")
    return HardwareFault(words, device=board.uuid, during="reset", hint="reboot the node", code=status)
