"""How a GPU is shared: whole, by MPS, or in time slices. One GPU has one mode, and it is said aloud.

``HAL_NVIDIA_SHARING`` names the modes, separated by semicolons, each for one GPU (its UUID) or, without a name, for all
others::

    mps:4                                   every GPU is offered as four MPS clients
    GPU-8a…=time-slice:2; mps:4,threads=50  one in two time slices, the rest by MPS with half the threads each

=============  ====================================================================================================
mode           what a share is
=============  ====================================================================================================
exclusive      none: the GPU is leased whole, or in MIG devices
mps            a client of the MPS daemon: ``CUDA_MPS_ACTIVE_THREAD_PERCENTAGE`` and
               ``CUDA_MPS_PINNED_DEVICE_MEM_LIMIT`` bound it; a fault of one client ends the others
time-slice     one of so many leases on the same GPU: programs take turns, nothing bounds their memory
=============  ====================================================================================================

A shared GPU is not leased whole, and never divided: MIG and shares on one GPU are refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from enum import StrEnum

import msgspec

from hal.errors import UsageError
from hal.model.attributes import known
from hal.model.device import Device
from hal.model.lease import AllocatedDevice

SHARING = "HAL_NVIDIA_SHARING"
PIPES = "CUDA_MPS_PIPE_DIRECTORY"
DEFAULT_PIPES = "/tmp/nvidia-mps"
"""Where the MPS control daemon listens if nobody says otherwise (NVIDIA's "Multi-Process Service", environment)."""
MOST_SHARES = 48
"""Clients of one MPS server on Volta and later; the same bound is kept for time slices."""
_MARK = "/share-"
_SOURCE = "config"


class SharingMode(StrEnum):
    """How a GPU is shared."""

    EXCLUSIVE = "exclusive"
    MPS = "mps"
    TIME_SLICE = "time-slice"


class Sharing(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU's mode. ``thread_percent`` and ``memory_bytes`` bound one MPS client; None is an equal part of what
    there is.
    """

    mode: SharingMode = SharingMode.EXCLUSIVE
    shares: int = 1
    thread_percent: int | None = None
    memory_bytes: int | None = None
    pipes: str = DEFAULT_PIPES

    @property
    def shared(self) -> bool:
        """True if the GPU is offered in shares."""
        return self.mode is not SharingMode.EXCLUSIVE

    def memory_of(self, total_bytes: int) -> int:
        """Return what one share may use: its bound under MPS; in time slices all, which the others use too."""
        if self.mode is SharingMode.TIME_SLICE:
            return total_bytes
        return self.memory_bytes or total_bytes // self.shares

    def environment(self, gpu: str, total_bytes: int | None) -> dict[str, str]:
        """Return the variables with which a program uses one share and no more."""
        found = {"CUDA_VISIBLE_DEVICES": gpu}
        if self.mode is SharingMode.MPS:
            found[PIPES] = self.pipes
            found["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = str(self.thread_percent or max(1, 100 // self.shares))
            limit = self.memory_bytes or (total_bytes // self.shares if total_bytes else None)
            if limit is not None:
                # The lease's only GPU is the only one that is visible, so its number is 0.
                found["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] = f"0={limit >> 20}M"
        return found


EXCLUSIVE = Sharing()


class SharingPlan(msgspec.Struct, frozen=True):
    """What ``HAL_NVIDIA_SHARING`` says: modes by UUID, and the one for all other GPUs."""

    named: dict[str, Sharing] = {}
    rest: Sharing = EXCLUSIVE

    def of(self, gpu: str) -> Sharing:
        """Return the mode of the GPU with that UUID."""
        return self.named.get(gpu, self.rest)


def parse(environ: Mapping[str, str]) -> SharingPlan:
    """Return the plan. Raises :class:`~hal.errors.UsageError` for a text that makes no sense."""
    named: dict[str, Sharing] = {}
    rest = EXCLUSIVE
    pipes = environ.get(PIPES) or DEFAULT_PIPES
    for part in filter(None, (part.strip() for part in environ.get(SHARING, "").split(";"))):
        head, _, options = part.partition(",")
        gpu, equals, word = head.rpartition("=")
        sharing = _sharing(word.strip(), options, pipes, part)
        if equals:
            named[gpu.strip()] = sharing
        else:
            rest = sharing
    return SharingPlan(named, rest)


def _sharing(word: str, options: str, pipes: str, part: str) -> Sharing:
    name, _, count = word.partition(":")
    try:
        mode = SharingMode(name)
        shares = int(count) if count else 1
    except ValueError:
        raise _wrong(part, f"{word!r} is no mode and number") from None
    if mode is SharingMode.EXCLUSIVE:
        if count or options:
            raise _wrong(part, "an exclusive GPU has no shares")
        return EXCLUSIVE
    if not 2 <= shares <= MOST_SHARES:
        raise _wrong(part, f"{shares} shares; 2 to {MOST_SHARES} make sense")
    threads: int | None = None
    memory: int | None = None
    for option in filter(None, (option.strip() for option in options.split(","))):
        key, _, value = option.partition("=")
        if mode is not SharingMode.MPS:
            raise _wrong(part, "nothing bounds a time slice")
        if key == "threads" and value.isdigit() and 1 <= int(value) <= 100:
            threads = int(value)
        elif key == "memory" and (memory := _size(value)):
            continue
        else:
            raise _wrong(part, f"{option!r} is no bound")
    return Sharing(mode=mode, shares=shares, thread_percent=threads, memory_bytes=memory, pipes=pipes)


def _size(value: str) -> int | None:
    for suffix, factor in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if value.endswith(suffix) and value.removesuffix(suffix).isdigit():
            return int(value.removesuffix(suffix)) * factor
    return None


def _wrong(part: str, why: str) -> UsageError:
    return UsageError(
        f"{SHARING}: {part!r}: {why}",
        during="configure",
        hint="exclusive, mps:4, mps:4,threads=50,memory=8GiB or time-slice:2, each with GPU-…= before it or for all",
    )


def share_id(gpu: str, number: int) -> str:
    """Return the id of one share of a GPU."""
    return f"{gpu}{_MARK}{number}"


def gpu_of(device_id: str) -> str:
    """Return the GPU of a share, or the id itself."""
    return device_id.partition(_MARK)[0]


def is_share(device_id: str) -> bool:
    """True for the id of a share."""
    return _MARK in device_id


def shares_of(gpu: Device, sharing: Sharing) -> list[Device]:
    """Return a GPU's shares as devices, children of it."""
    total = gpu.capacity.get("memory_bytes", 0)
    memory = sharing.memory_of(total)
    found = []
    for number in range(sharing.shares):
        share = share_id(gpu.id, number)
        attributes = gpu.attributes | {
            "uuid": known(share, _SOURCE),
            "memory_bytes": known(memory, _SOURCE),
            "sharing": known(str(sharing.mode), _SOURCE),
            "memory_isolated": known(False, _SOURCE),
            "faults_isolated": known(sharing.mode is SharingMode.TIME_SLICE, _SOURCE),
        }
        found.append(
            msgspec.structs.replace(
                gpu,
                id=share,
                name=f"{gpu.name}-share{number}",
                aliases=(f"uuid:{share}",),
                attributes=attributes,
                capacity={"memory_bytes": memory},
                links=(),
                conditions=tuple(msgspec.structs.replace(c, device=share) for c in gpu.conditions),
                parent=gpu.id,
                allocatable=gpu.presence == "present",
            )
        )
    return found


def exported(devices: Sequence[AllocatedDevice]) -> Mapping[str, str]:
    """Return the variables for a lease that has shares; nothing for one that has none.

    Several shares of MPS in one lease, or shares beside whole GPUs, cannot be told to CUDA apart: then no bound is
    exported but what all have in common.
    """
    shares = [device for device in devices if is_share(device.id)]
    if not shares:
        return {}
    plan = parse(os.environ)
    gpus = list(dict.fromkeys(_visible(device) for device in devices if device.kind == "gpu"))
    found: dict[str, str] = {}
    for device in shares:
        gpu = gpu_of(device.id)
        found |= plan.of(gpu).environment(gpu, None)
    found["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return found


def _visible(device: AllocatedDevice) -> str:
    if is_share(device.id):
        return gpu_of(device.id)
    alias = next((name for name in device.aliases if name.startswith("uuid:")), "")
    return alias.removeprefix("uuid:") or device.id
