"""The facet ``PartitionsDevices`` of the driver, and what the verbs of an opened GPU share with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

from hal.errors import DeviceBusy
from hal.interfaces.deadline import Deadline, or_default
from hal.interfaces.gpu import Mode, Partition, PartitionProfile
from hal.interfaces.operation import Operation
from hal_nvidia import mig
from hal_nvidia.asking import ask
from hal_nvidia.board import Board
from hal_nvidia.boards import Boards, gone
from hal_nvidia.library import Library
from hal_nvidia.sharing import SHARING, Sharing

T = TypeVar("T")
OPERATION_SECONDS = 60.0


class PartitioningDriver(ABC):
    """Divides GPUs. A GPU that is shared by MPS or in time slices is refused: the two are never mixed."""

    library: Library
    boards: Boards

    @abstractmethod
    def plan(self, device_id: str) -> Sharing:
        """Return how a GPU is shared."""

    @abstractmethod
    def _find(self, device_id: str, step: str, deadline: Deadline) -> Board:
        """Return the GPU of a device."""

    def manage(self, device_id: str, step: str, work: Callable[[Board], T], deadline: Deadline | None) -> T:
        """Do something with a whole GPU within the deadline; raise errors of hal."""
        limit = or_default(deadline)
        board = self._find(device_id, step, limit)
        if board.lost:
            raise gone(device_id, step)
        return ask(self.library, board, step, work, limit)

    def partitioning(self, device_id: str, *, deadline: Deadline | None = None) -> Mode:
        """Return the mode, now and after the next reset."""
        return self.manage(device_id, "partitioning", mig.mode, deadline)

    def set_partitioning(self, device_id: str, enabled: bool, *, deadline: Deadline | None = None) -> Mode:
        """Ask for the mode. ``DeviceBusy`` for a GPU that is configured to be shared otherwise."""
        sharing = self.plan(device_id)
        if enabled and sharing.shared:
            raise DeviceBusy(
                f"the GPU is configured for {sharing.mode}; MIG is never mixed with it",
                device=device_id,
                during="set_partitioning",
                hint=f"take it out of {SHARING} first",
            )
        return self.manage(device_id, "set_partitioning", lambda board: mig.set_mode(board, enabled), deadline)

    def partition_profiles(self, device_id: str, *, deadline: Deadline | None = None) -> Sequence[PartitionProfile]:
        """Return the shapes that the board knows."""
        return self.manage(
            device_id, "partition_profiles", lambda board: tuple(p.told for p in mig.profiles(board)), deadline
        )

    def partitions(self, device_id: str, *, deadline: Deadline | None = None) -> Sequence[Partition]:
        """Return the partitions that exist."""
        return self.manage(device_id, "partitions", mig.partitions, deadline)

    def create_partition(
        self, device_id: str, profile: str, start: int | None = None, *, deadline: Deadline | None = None
    ) -> Operation[Partition]:
        """Make a partition: a GPU instance with one compute instance that fills it."""
        limit = or_default(deadline, OPERATION_SECONDS)

        def work(_: Operation[Partition]) -> Partition:
            made = self.manage(device_id, "create_partition", lambda board: mig.create(board, profile, start), limit)
            self.boards.partitions[made.id] = device_id
            return made

        return Operation.spawn(device_id, "create_partition", work)

    def destroy_partition(
        self, device_id: str, partition_id: str, *, deadline: Deadline | None = None
    ) -> Operation[None]:
        """End a partition that nobody uses."""
        limit = or_default(deadline, OPERATION_SECONDS)

        def work(_: Operation[None]) -> None:
            self.manage(device_id, "destroy_partition", lambda board: mig.destroy(board, partition_id), limit)
            self.boards.partitions.pop(partition_id, None)

        return Operation.spawn(device_id, "destroy_partition", work)
