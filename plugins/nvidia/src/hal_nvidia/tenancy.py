"""What lies between two holders of a GPU: processes that must have ended, and the daemon that shares need."""

from __future__ import annotations

import os
import time

from hal.errors import DeviceBusy, DeviceGone, NotReady, Unsupported
from hal.interfaces.deadline import Deadline
from hal_nvidia import mig
from hal_nvidia.asking import ask
from hal_nvidia.board import Board, process_name
from hal_nvidia.library import Library
from hal_nvidia.sharing import PIPES, Sharing

LEAVE_SECONDS = 2.0
"""How long processes of a holder may take to end after its lease has."""
_LOOK_SECONDS = 0.05


def require_daemon(device_id: str, sharing: Sharing) -> None:
    """Raise unless the MPS control daemon listens where the configuration says."""
    control = os.path.join(sharing.pipes, "control")
    if not os.path.exists(control):
        raise NotReady(
            f"no MPS control daemon listens: there is no {control}",
            device=device_id,
            during="prepare",
            hint=f"{PIPES}={sharing.pipes} nvidia-cuda-mps-control -d",
        )


def refuse_leftovers(library: Library, board: Board, device_id: str, deadline: Deadline) -> None:
    """Raise ``DeviceBusy`` while another process than this one computes on a GPU or MIG device.

    NVML ends no process. Handles in this process have died by their guard page. A GPU that does not answer any more
    computes for nobody.
    """
    patience = Deadline.after(min(LEAVE_SECONDS, deadline.remaining_seconds / 2))
    while True:
        try:
            left = ask(library, board, "unprepare", lambda board: _others(board, device_id), deadline)
        except (DeviceGone, Unsupported):
            return
        if not left:
            return
        if patience.expired:
            pid, name = left[0]
            raise DeviceBusy(
                f"process {pid} ({name or 'unknown'}) still computes on it",
                device=device_id,
                during="unprepare",
                hint=f"end it: kill {pid}",
            )
        time.sleep(_LOOK_SECONDS)


def _others(board: Board, device_id: str) -> list[tuple[int, str]]:
    users = mig.users(board)
    if device_id != board.uuid:
        here = {
            (one.gpu_instance, one.compute_instance) for one in mig.instances(board) if one.partition.id == device_id
        }
        users = [user for user in users if user[2:] in here]
    elif mig.enabled(board):
        return []  # a divided GPU computes in its partitions only, and those have leases of their own
    own = os.getpid()
    return [(pid, process_name(board.nvml, pid)) for pid, *_ in users if pid != own]
