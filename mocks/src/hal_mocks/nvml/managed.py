"""What programs set through NVML and what the Python driver sets are one: modes, power limit, partitions."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import msgspec

from hal_mocks.gpu_mig import partition_at
from hal_mocks.nvml.files import StateFile, next_place, nvidia_gpus, state_path

if TYPE_CHECKING:
    from hal.interfaces.gpu import Partition
    from hal_mocks.gpu_store import Record
    from hal_mocks.graph import Gpu
    from hal_mocks.machine import Machine


class Managed:
    """The GPUs of a machine whose state files exist; of the others nothing is shared, and nothing happens here."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._hosts = {gpu.uuid: host.name for host in machine.graph.hosts for gpu in host.gpus}
        self._open: dict[str, tuple[int, dict[str, tuple[Any, Gpu]]]] = {}

    def read(self, uuid: str, record: Record) -> Record:
        """Return a record with what holds in the state file; call it after every look at the record's own file."""
        found = self._find(uuid)
        if found is None:
            return record
        gpu, board = found
        return overlaid(record, gpu.managed[gpu.managed_generation & 1], board)

    def write(self, uuid: str, record: Record) -> None:
        """Let a record hold in the state file; call it under ``gpu.lock``."""
        found = self._find(uuid)
        if found is not None:
            gpu, board = found
            with next_place(gpu, "managed") as (fresh, old):
                write_record(fresh, old, record, board)

    def _find(self, uuid: str) -> tuple[Any, Gpu] | None:
        host = self._hosts.get(uuid)
        if host is None:
            return None
        path = state_path(self._machine.state.folder, host)
        try:
            inode = path.stat().st_ino
        except OSError:
            return None
        opened = self._open.get(host)
        if opened is None or opened[0] != inode:
            state = StateFile(path)
            places = nvidia_gpus(self._machine.graph, host) if state.fits else []
            gpus = {place.gpu.uuid: (state.gpus[index], place.gpu) for index, place in enumerate(places)}
            opened = self._open[host] = (inode, gpus)
        return opened[1].get(uuid)


def overlaid(record: Record, managed: Any, gpu: Gpu) -> Record:
    """Return a record with the modes, the power limit and the partitions of a state file."""
    partitions = sorted(
        (_partition(instance, gpu) for instance in managed.instances if instance.exists),
        key=lambda partition: partition.start,
    )
    limit = managed.power_limit_mw
    return msgspec.structs.replace(
        record,
        partitioning=bool(managed.mig),
        partitioning_pending=bool(managed.mig_pending),
        ecc=bool(managed.ecc),
        ecc_pending=bool(managed.ecc_pending),
        power_limit_watts=limit / 1000 if limit else None,
        partitions=tuple(partitions),
    )


def _partition(instance: Any, gpu: Gpu) -> Partition:
    profile = gpu.mig[instance.profile]
    return partition_at(gpu, profile, profile.placements[instance.place])


def write_record(fresh: Any, old: Any, record: Record, gpu: Gpu) -> None:
    """Fill in a place of ``managed``: what a record does not know stays, and so do instances that are still there."""
    ctypes.memmove(ctypes.addressof(fresh), ctypes.addressof(old), ctypes.sizeof(old))
    fresh.mig, fresh.mig_pending = record.partitioning, record.partitioning_pending
    fresh.ecc, fresh.ecc_pending = record.ecc, record.ecc_pending
    fresh.power_limit_mw = 0 if record.power_limit_watts is None else round(1000 * record.power_limit_watts)
    wanted = {(partition.profile, partition.start): partition for partition in record.partitions}
    for instance in fresh.instances:
        if instance.exists:
            there = _partition(instance, gpu)
            if wanted.pop((there.profile, there.start), None) is None:
                _clear(instance)
    free = (instance for instance in fresh.instances if not instance.exists)
    for instance, partition in zip(free, wanted.values(), strict=False):
        _clear(instance)
        profile = next(at for at, each in enumerate(gpu.mig) if each.name == partition.profile)
        instance.profile, instance.place = profile, gpu.mig[profile].placements.index(partition.start)
        # The Python driver knows no parts of an instance: a partition is the instance and all of its slices.
        instance.computes[0].exists, instance.computes[0].slices = 1, partition.compute_slices
        instance.exists = 1


def _clear(instance: Any) -> None:
    instance.exists = 0
    for compute in instance.computes:
        compute.exists = compute.slices = compute.start = 0
