"""Where partitions may lie on a GPU: slices, starts, overlaps. Values in, values out."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from hal.errors import DeviceBusy, InvalidArgument
from hal.interfaces.gpu import Partition, PartitionProfile
from hal_mocks.graph import Gpu, MigProfile

MEDIA = "+me"
"""The suffix of profiles that take the media engines, of which there is one set a GPU."""


def profiles_of(gpu: Gpu) -> tuple[PartitionProfile, ...]:
    """Return the board's profiles as the interface names them."""
    return tuple(
        PartitionProfile(
            name=profile.name,
            compute_slices=profile.compute_slices,
            memory_slices=profile.memory_slices,
            memory_bytes=profile.memory_bytes,
            placements=profile.placements,
            instances_max=instances_max(gpu, profile),
        )
        for profile in gpu.mig
    )


def compute_slices(gpu: Gpu) -> int:
    """Return how many slices the GPU has for computing: what its largest profile takes."""
    return max((profile.compute_slices for profile in gpu.mig), default=0)


def instances_max(gpu: Gpu, profile: MigProfile) -> int:
    """Return how many instances of one profile fit on the empty device."""
    if profile.name.endswith(MEDIA):
        return 1
    count = end = 0
    for start in sorted(profile.placements):
        if start >= end:
            count, end = count + 1, start + profile.memory_slices
    return min(count, compute_slices(gpu) // max(1, profile.compute_slices))


def place(gpu: Gpu, existing: Sequence[Partition], name: str, start: int | None) -> Partition:
    """Return the new partition, at ``start`` or at the first place where it fits; raise why it cannot be."""
    profile = next((profile for profile in gpu.mig if profile.name == name), None)
    if profile is None:
        raise _refusal(gpu, InvalidArgument, f"no profile {name!r}", "one of " + ", ".join(p.name for p in gpu.mig))
    if start is not None and start not in profile.placements:
        places = ", ".join(map(str, profile.placements))
        raise _refusal(gpu, InvalidArgument, f"{name} cannot start at slice {start}", f"one of {places}")
    if name.endswith(MEDIA) and any(partition.profile.endswith(MEDIA) for partition in existing):
        raise _refusal(gpu, DeviceBusy, "the media engines belong to another partition", "the profile without +me")
    if profile.compute_slices + sum(p.compute_slices for p in existing) > compute_slices(gpu):
        raise _refusal(gpu, DeviceBusy, f"not enough compute slices are left for {name}", "destroy a partition")
    taken = {slice_ for p in existing for slice_ in range(p.start, p.start + p.memory_slices)}
    for candidate in sorted(profile.placements) if start is None else (start,):
        if taken.isdisjoint(range(candidate, candidate + profile.memory_slices)):
            return partition_at(gpu, profile, candidate)
    raise _refusal(
        gpu,
        DeviceBusy,
        f"memory slices that {name} needs are taken" if start is not None else f"no place is free for {name}",
        "another start, a smaller profile, or destroy a partition",
    )


def partition_id(gpu: Gpu, profile: str, start: int) -> str:
    """Return the id of the partition at a place: the same for the same place of the same GPU.

    So it is with NVIDIA's driver: a partition made again after a reboot is known again, and its fence still only grows.
    """
    return f"MIG-{uuid.uuid5(uuid.NAMESPACE_OID, f'{gpu.uuid}/{profile}/{start}')}"


def partition_at(gpu: Gpu, profile: MigProfile, start: int) -> Partition:
    """Return the partition of a profile at a place."""
    return Partition(
        id=partition_id(gpu, profile.name, start),
        profile=profile.name,
        start=start,
        compute_slices=profile.compute_slices,
        memory_slices=profile.memory_slices,
        memory_bytes=profile.memory_bytes,
    )


def _refusal(
    gpu: Gpu, error: type[InvalidArgument] | type[DeviceBusy], message: str, hint: str
) -> InvalidArgument | DeviceBusy:
    return error(message, device=gpu.uuid, during="create_partition", hint=hint)
