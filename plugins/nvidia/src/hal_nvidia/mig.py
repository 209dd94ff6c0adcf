"""MIG: a GPU divided into GPU instances, each with one compute instance as large as itself.

A partition of hal is a MIG device: one compute instance of a GPU instance. What others made (several compute instances
in one GPU instance) is shown and can be destroyed; made here is always the whole. Placements are tried in ascending
order, so that the same claims give the same layout everywhere.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import msgspec

from hal.errors import DeviceBusy, DeviceNotFound, HalError, InvalidArgument, Unsupported
from hal.interfaces.gpu import Mode, Partition, PartitionProfile
from hal.model.attributes import Absence, Attribute, absent, known
from hal_nvidia import errors as e
from hal_nvidia.board import Board, process_name, text

_PREFIX = "MIG "
_SHARED_ENGINES = 0
_COMPUTE_PROFILES = 9
_MB = 1 << 20


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU instance profile with NVML's own number, by which instances are made."""

    number: int
    told: PartitionProfile


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """A MIG device with the numbers of its instances, by which events and processes name it."""

    partition: Partition
    gpu_instance: int
    compute_instance: int
    multiprocessors: int | None = None


def mode(board: Board) -> Mode:
    """Return whether the GPU can be divided, now and after the next reset."""
    current, pending = board.nvml.nvmlDeviceGetMigMode(board.handle)
    return Mode(current=bool(current), pending=bool(pending))


def enabled(board: Board) -> bool:
    """True if the GPU is in MIG mode now; False also for one that has no such mode."""
    return _mode_told(board) and mode(board).current


def set_mode(board: Board, enabled: bool) -> Mode:
    """Ask for the mode. Hopper and later take it on at once, Ampere at the next reset."""
    now = mode(board)
    if not enabled and now.current:
        existing = partitions(board)
        if existing:
            raise DeviceBusy(
                f"{len(existing)} partition(s) exist",
                device=board.uuid,
                during="set_partitioning",
                hint="destroy them first",
            )
    if now.pending != enabled:
        board.nvml.nvmlDeviceSetMigMode(board.handle, int(enabled))
        board.rearm()
    return mode(board)


def profiles(board: Board) -> tuple[Profile, ...]:
    """Return the shapes that the board knows, as the driver lists them."""
    found: list[Profile] = []
    refusal: Exception | None = None
    for number in range(board.nvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
        try:
            found.append(_profile(board, number))
        except Exception as error:  # a guard around the library: a profile that this board has not
            if e.code_of(error) is None or e.code_of(error) in e.LOST:
                raise
            refusal = error
    if not found:
        capable = _mode_told(board)
        raise Unsupported(
            f"the driver lists no profile ({refusal})",
            device=board.uuid,
            during="partition_profiles",
            hint="set_partitioning(True), then reset" if capable else "a board with MIG (A100, H100 and later)",
        )
    return tuple(sorted(found, key=lambda p: (p.told.memory_slices, p.told.compute_slices, p.told.name)))


def placements(board: Board) -> dict[str, Attribute]:
    """Return where partitions may lie, as an attribute; nothing for a board without MIG. Asked once a board.

    A board that lists its profiles only in MIG mode is asked again until it does.
    """
    if board.placements is None and _mode_told(board):
        try:
            board.placements = known(tuple(profile.told.line for profile in profiles(board)), e.SOURCE)
        except Unsupported as error:
            return {"partition_placements": absent(Absence.NOT_REPORTED, e.SOURCE, error.message)}
    return {} if board.placements is None else {"partition_placements": board.placements}


def _mode_told(board: Board) -> bool:
    try:
        mode(board)
    except Exception as error:  # a guard around the library: no mode, so no MIG
        if e.code_of(error) is None or e.code_of(error) in e.LOST:
            raise
        return False
    return True


def _profile(board: Board, number: int) -> Profile:
    nvml = board.nvml
    info = nvml.nvmlDeviceGetGpuInstanceProfileInfo(board.handle, number)
    name = text(info.name)
    places = tuple(_placements(board, info.id))
    return Profile(
        number=info.id,
        told=PartitionProfile(
            name=name.removeprefix(_PREFIX),
            compute_slices=info.sliceCount,
            memory_slices=places[0][1] if places else info.sliceCount,
            memory_bytes=info.memorySizeMB * _MB,
            placements=tuple(sorted(start for start, _ in places)),
            instances_max=info.instanceCount,
        ),
    )


def _placements(board: Board, profile: int) -> Iterator[tuple[int, int]]:
    nvml = board.nvml
    count = ctypes.c_uint(0)
    nvml.nvmlDeviceGetGpuInstancePossiblePlacements(board.handle, profile, None, ctypes.byref(count))
    if not count.value:
        return
    places = (nvml.c_nvmlGpuInstancePlacement_t * count.value)()
    nvml.nvmlDeviceGetGpuInstancePossiblePlacements(board.handle, profile, places, ctypes.byref(count))
    for place in places[: count.value]:
        yield place.start, place.size


def instances(board: Board) -> tuple[Instance, ...]:
    """Return the MIG devices that exist, by their first memory slice; none where the mode is off."""
    if not enabled(board):
        return ()
    names = {profile.number: profile.told for profile in profiles(board)}
    found = [_instance(board, handle, names) for handle in _handles(board)]
    return tuple(sorted(found, key=lambda one: (one.partition.start, one.compute_instance)))


def _handles(board: Board) -> Iterator[Any]:
    nvml = board.nvml
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(board.handle)):
        try:
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(board.handle, index)
        except Exception as error:  # a guard around the library: indices need not be without gaps
            if e.code_of(error) not in (e.NOT_FOUND, e.INVALID_ARGUMENT):
                raise


def _instance(board: Board, handle: Any, names: dict[int, PartitionProfile]) -> Instance:
    nvml = board.nvml
    gpu_instance = nvml.nvmlDeviceGetGpuInstanceId(handle)
    compute_instance = nvml.nvmlDeviceGetComputeInstanceId(handle)
    info = nvml.nvmlGpuInstanceGetInfo(nvml.nvmlDeviceGetGpuInstanceById(board.handle, gpu_instance))
    whole = names.get(info.profileId)
    size = nvml.nvmlDeviceGetAttributes(handle)
    name = whole.name if whole is not None else f"profile {info.profileId}"
    slices = size.computeInstanceSliceCount or (whole.compute_slices if whole is not None else 0)
    if whole is not None and slices != whole.compute_slices:
        name = f"{slices}c.{name}"
    return Instance(
        partition=Partition(
            id=text(nvml.nvmlDeviceGetUUID(handle)),
            profile=name,
            start=info.placement.start,
            compute_slices=slices,
            memory_slices=info.placement.size,
            memory_bytes=size.memorySizeMB * _MB,
        ),
        gpu_instance=gpu_instance,
        compute_instance=compute_instance,
        multiprocessors=size.multiprocessorCount or None,
    )


def partitions(board: Board) -> tuple[Partition, ...]:
    """Return the partitions that exist. Raises NVML's answer where the board cannot be divided."""
    mode(board)
    return tuple(instance.partition for instance in instances(board))


def create(board: Board, name: str, start: int | None) -> Partition:
    """Make a GPU instance and, in it, the compute instance that fills it."""
    step = "create_partition"
    if not mode(board).current:
        raise Unsupported(
            "the GPU is not in the mode in which it can be divided",
            device=board.uuid,
            during=step,
            hint="set_partitioning(True), then reset",
        )
    known = profiles(board)
    profile = next((profile for profile in known if profile.told.name == name), None)
    if profile is None:
        names = ", ".join(profile.told.name for profile in known)
        raise InvalidArgument(f"no profile {name!r}", device=board.uuid, during=step, hint=f"one of {names}")
    if start is not None and start not in profile.told.placements:
        places = ", ".join(map(str, profile.told.placements))
        raise InvalidArgument(
            f"{name} cannot start at slice {start}", device=board.uuid, during=step, hint=f"one of {places}"
        )
    made = _make_instance(board, profile, profile.told.placements if start is None else (start,))
    if made is None:
        raise DeviceBusy(
            f"no place is free for {name}" if start is None else f"what {name} needs at slice {start} is taken",
            device=board.uuid,
            during=step,
            hint="another start, a smaller profile, or destroy a partition",
        )
    nvml = board.nvml
    try:
        nvml.nvmlGpuInstanceCreateComputeInstance(made, _whole_compute_profile(board, made, profile))
    except BaseException:
        nvml.nvmlGpuInstanceDestroy(made)  # half a partition would keep its slices and be no device
        raise
    board.rearm()
    number = nvml.nvmlGpuInstanceGetInfo(made).id
    return next(one.partition for one in instances(board) if one.gpu_instance == number)


def _make_instance(board: Board, profile: Profile, starts: tuple[int, ...]) -> Any:
    nvml = board.nvml
    for start in starts:
        place = nvml.c_nvmlGpuInstancePlacement_t(start, profile.told.memory_slices)
        try:
            return nvml.nvmlDeviceCreateGpuInstanceWithPlacement(board.handle, profile.number, ctypes.byref(place))
        except Exception as error:  # a guard around the library: the next place may be free
            if e.code_of(error) != e.INSUFFICIENT_RESOURCES:
                raise
    return None


def _whole_compute_profile(board: Board, instance: Any, profile: Profile) -> int:
    nvml = board.nvml
    for number in range(_COMPUTE_PROFILES):
        try:
            info = nvml.nvmlGpuInstanceGetComputeInstanceProfileInfo(instance, number, _SHARED_ENGINES)
        except Exception as error:  # a guard around the library: a profile that this instance has not
            if e.code_of(error) is None or e.code_of(error) in e.LOST:
                raise
            continue
        if info.sliceCount == profile.told.compute_slices:
            return int(info.id)
    raise Unsupported(
        f"no compute instance fills {profile.told.name}",
        device=board.uuid,
        during="create_partition",
        hint="another profile",
    )


def destroy(board: Board, partition_id: str) -> None:
    """End a MIG device, and its GPU instance with the last compute instance in it."""
    step = "destroy_partition"
    mode(board)
    found = next((one for one in instances(board) if one.partition.id == partition_id), None)
    if found is None:
        raise DeviceNotFound(f"no partition of {board.uuid}", device=partition_id, during=step, hint="partitions()")
    nvml = board.nvml
    gpu_instance = nvml.nvmlDeviceGetGpuInstanceById(board.handle, found.gpu_instance)
    compute_instance = nvml.nvmlGpuInstanceGetComputeInstanceById(gpu_instance, found.compute_instance)
    try:
        nvml.nvmlComputeInstanceDestroy(compute_instance)
        if not any(
            one.gpu_instance == found.gpu_instance and one.compute_instance != found.compute_instance
            for one in instances(board)
        ):
            nvml.nvmlGpuInstanceDestroy(gpu_instance)
    except Exception as error:  # a guard around the library: in use is the answer that has another hint here
        if e.code_of(error) != e.IN_USE:
            raise
        raise _used(board, found) from error
    board.rearm()


def _used(board: Board, found: Instance) -> HalError:
    who = [p for p in users(board) if (p[2], p[3]) == (found.gpu_instance, found.compute_instance)]
    by = f"process {who[0][0]} ({process_name(board.nvml, who[0][0])}) uses it" if who else "it is in use"
    return DeviceBusy(
        by, device=found.partition.id, during="destroy_partition", hint="end the process, or release its lease"
    )


def users(board: Board) -> list[tuple[int, int | None, int, int]]:
    """Return (pid, memory in bytes, GPU instance, compute instance) of every compute process, MPS clients included."""
    nvml = board.nvml
    found: dict[tuple[int, int, int], int | None] = {}
    for name in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetMPSComputeRunningProcesses"):
        try:
            processes = getattr(nvml, name)(board.handle)
        except Exception as error:  # a guard around the library: MPS is not told by every board
            if e.code_of(error) not in e.NEVER or name == "nvmlDeviceGetComputeRunningProcesses":
                raise
            continue
        for process in processes:
            found.setdefault((process.pid, process.gpuInstanceId, process.computeInstanceId), process.usedGpuMemory)
    return [(pid, used, gpu, compute) for (pid, gpu, compute), used in sorted(found.items())]
