"""What an opened GPU, or a partition of one, can do; for computing see :mod:`hal.interfaces.gpu_compute`.

The source of a fact is NVML unless something else is named; other vendors' libraries have the same facts under other
names. A verb that this board, driver or firmware does not have raises :class:`~hal.errors.Unsupported`.

:meth:`~hal.interfaces.common.Handle.telemetry` of a GPU gives these names (each one absent with a reason where it
cannot be read): ``gpu_utilization_percent``, ``memory_used_bytes``, ``memory_free_bytes``, ``memory_total_bytes``,
``power_watts``, ``power_limit_watts``, ``energy_joules``, ``temperature_celsius``, ``sm_clock_hz``,
``sm_max_clock_hz``, ``memory_clock_hz``, ``clock_event_reasons`` (:data:`CLOCK_EVENT_REASONS`),
``pcie_speed_gts``, ``pcie_max_speed_gts``, ``pcie_width``, ``pcie_max_width``, ``pcie_replays``,
``pcie_received_bytes``, ``pcie_sent_bytes``, ``recovery_action`` (:class:`~hal.model.health.Action`).
What is counted (energy, replays, bytes) never falls.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol, runtime_checkable

import msgspec

from hal.interfaces.common import Handle
from hal.interfaces.deadline import Deadline
from hal.interfaces.gpu_compute import Compute, Memory
from hal.interfaces.operation import Operation

CLOCK_EVENT_REASONS = (
    "gpu-idle",
    "applications-clocks-setting",
    "sw-power-cap",
    "hw-slowdown",
    "sync-boost",
    "sw-thermal-slowdown",
    "hw-thermal-slowdown",
    "hw-power-brake-slowdown",
    "display-clock-setting",
)
"""Why clocks are lower than they could be, in NVML's order of ``nvmlClocksEventReason*``."""


class Mode(msgspec.Struct, frozen=True, kw_only=True):
    """A setting that takes effect at the next reset: what holds now, and what will."""

    current: bool
    pending: bool

    @property
    def needs_reset(self) -> bool:
        """True if a reset would change it."""
        return self.current != self.pending


class GpuProcess(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A process that has a context on the device. ``memory_bytes`` is None where the driver does not tell;
    ``partition`` the MIG device's id, if it uses one.
    """

    pid: int
    name: str = ""
    memory_bytes: int | None = None
    partition: str | None = None


class EccCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Errors of one memory: corrected (single bit) and uncorrected (double bit)."""

    corrected: int = 0
    uncorrected: int = 0


class Ecc(msgspec.Struct, frozen=True, kw_only=True):
    """Error correction: whether it is on, and counts by location (``dram``, ``sram``).

    ``volatile`` counts since the driver was loaded or the device reset, ``aggregate`` over the board's life.
    """

    mode: Mode
    volatile: dict[str, EccCounts]
    aggregate: dict[str, EccCounts]


class RowRemapping(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of memory replaced by spare ones (Ampere and later).

    ``pending``: a row is to be replaced at the next reset; ``failed``: no spare row was left, the board is to be
    exchanged. NVML ``nvmlDeviceGetRemappedRows``; not readable while partitions exist.
    """

    correctable: int
    uncorrectable: int
    pending: bool
    failed: bool


class PartitionProfile(msgspec.Struct, frozen=True, kw_only=True):
    """A shape that a partition can have (MIG: a GPU instance profile).

    ``placements`` are the memory slices at which one may start; it then takes ``memory_slices`` of them. Of a GPU's
    slices (A100 and H100: 7 for computing, 8 of memory) no two partitions share one. ``instances_max`` is how many of
    this profile fit on an empty device.
    """

    name: str
    compute_slices: int
    memory_slices: int
    memory_bytes: int
    placements: tuple[int, ...]
    instances_max: int

    @property
    def line(self) -> str:
        """The profile in the attribute ``partition_placements`` of its GPU: ``3g.40gb:4:0,4``."""
        return f"{self.name}:{self.memory_slices}:{','.join(map(str, self.placements))}"


class Partition(msgspec.Struct, frozen=True, kw_only=True):
    """A partition that exists. ``id`` is a device id (``MIG-…``) that can be claimed and opened; ``start`` the first
    memory slice.
    """

    id: str
    profile: str
    start: int
    compute_slices: int
    memory_slices: int
    memory_bytes: int


class PowerLimit(msgspec.Struct, frozen=True, kw_only=True):
    """How much power the board draws at most: what holds now, the board's own, and the bounds for another."""

    watts: float
    default_watts: float
    min_watts: float
    max_watts: float


class Ancestor(StrEnum):
    """What two devices have in common on the way to each other, nearest first (``nvmlGpuTopologyLevel_t``)."""

    INTERNAL = "internal"
    SINGLE = "single-switch"
    MULTIPLE = "multiple-switches"
    HOST_BRIDGE = "host-bridge"
    NODE = "numa-node"
    SYSTEM = "system"


class PeerAccess(StrEnum):
    """Whether one GPU may reach the other's memory (``nvmlGpuP2PStatus_t``)."""

    OK = "ok"
    NOT_SUPPORTED = "not-supported"
    DISABLED = "disabled"
    UNKNOWN = "unknown"


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """Another GPU of the same machine, seen from this one.

    ``nvlinks`` is how many links lead there and are up (through a switch: all that lead to the switch), 0 for none.
    """

    device: str
    ancestor: Ancestor
    access: PeerAccess
    nvlinks: int = 0
    through_switch: bool = False


@runtime_checkable
class Processes(Protocol):
    """Knows who computes."""

    def processes(self, *, deadline: Deadline | None = None) -> Sequence[GpuProcess]:
        """Return the processes that have a context here, partitions included, by pid."""
        ...


@runtime_checkable
class ErrorCorrection(Protocol):
    """Counts and corrects memory errors."""

    def ecc(self, *, deadline: Deadline | None = None) -> Ecc:
        """Return mode and counts."""
        ...

    def set_ecc(self, enabled: bool, *, deadline: Deadline | None = None) -> Mode:
        """Ask for error correction from the next reset on; needs root on real hardware (``AccessDenied``)."""
        ...

    def row_remapping(self, *, deadline: Deadline | None = None) -> RowRemapping:
        """Return the rows replaced. ``Unsupported`` before Ampere, and while partitions exist."""
        ...


@runtime_checkable
class Partitions(Protocol):
    """Can be divided into devices of their own (MIG)."""

    def partitioning(self, *, deadline: Deadline | None = None) -> Mode:
        """Return whether the device is in the mode in which it can be divided, now and after the next reset."""
        ...

    def set_partitioning(self, enabled: bool, *, deadline: Deadline | None = None) -> Mode:
        """Ask for the mode from the next reset on. ``DeviceBusy`` to leave it while partitions exist."""
        ...

    def partition_profiles(self, *, deadline: Deadline | None = None) -> Sequence[PartitionProfile]:
        """Return the shapes that this board knows, mode on or off."""
        ...

    def partitions(self, *, deadline: Deadline | None = None) -> Sequence[Partition]:
        """Return the partitions that exist, by their first memory slice."""
        ...

    def create_partition(
        self, profile: str, start: int | None = None, *, deadline: Deadline | None = None
    ) -> Operation[Partition]:
        """Make a partition at that memory slice, or at the first place where it fits.

        ``Unsupported`` while the mode is off, ``InvalidArgument`` for an unknown profile or a place it may not start
        at, ``DeviceBusy`` if slices it needs are taken, or none of its places is free.
        """
        ...

    def destroy_partition(self, partition_id: str, *, deadline: Deadline | None = None) -> Operation[None]:
        """End a partition. ``DeviceNotFound`` if it is not of this device, ``DeviceBusy`` while a process uses it."""
        ...


@runtime_checkable
class PowerLimits(Protocol):
    """Can be told how much power to draw at most."""

    def power_limit(self, *, deadline: Deadline | None = None) -> PowerLimit:
        """Return the limit and its bounds (``nvmlDeviceGetPowerManagementLimitConstraints``)."""
        ...

    def set_power_limit(self, watts: float | None, *, deadline: Deadline | None = None) -> PowerLimit:
        """Set the limit, or the board's own with None; it holds until the next reset.

        Needs root on real hardware (``AccessDenied``). ``InvalidArgument`` outside of the bounds.
        """
        ...


@runtime_checkable
class PeerTopology(Protocol):
    """Knows the way to the other GPUs of the machine."""

    def peers(self, *, deadline: Deadline | None = None) -> Sequence[Peer]:
        """Return every other whole GPU of the machine, nearest first."""
        ...


@runtime_checkable
class Gpu(Processes, ErrorCorrection, Partitions, PowerLimits, PeerTopology, Memory, Compute, Handle, Protocol):
    """A GPU, or a partition of one, opened."""


@runtime_checkable
class PartitionsDevices(Protocol):
    """A facet of a driver: the verbs of :class:`Partitions` for whoever manages the machine and holds no lease."""

    def partitioning(self, device_id: str, *, deadline: Deadline | None = None) -> Mode:
        """Return the mode, now and after the next reset."""
        ...

    def set_partitioning(self, device_id: str, enabled: bool, *, deadline: Deadline | None = None) -> Mode:
        """Ask for the mode from the next reset on."""
        ...

    def partition_profiles(self, device_id: str, *, deadline: Deadline | None = None) -> Sequence[PartitionProfile]:
        """Return the shapes that the board knows."""
        ...

    def partitions(self, device_id: str, *, deadline: Deadline | None = None) -> Sequence[Partition]:
        """Return the partitions that exist."""
        ...

    def create_partition(
        self, device_id: str, profile: str, start: int | None = None, *, deadline: Deadline | None = None
    ) -> Operation[Partition]:
        """Make a partition."""
        ...

    def destroy_partition(
        self, device_id: str, partition_id: str, *, deadline: Deadline | None = None
    ) -> Operation[None]:
        """End a partition."""
        ...
